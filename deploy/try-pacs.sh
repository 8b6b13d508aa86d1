#!/bin/sh
# docker-compose.pacs.yml without Docker: send a study to an Orthanc and wait for its structured report.
#
#   apt install orthanc orthanc-dicomweb dcmtk; pip install '.[pacs]'
#   sh deploy/try-pacs.sh study/*.dcm           # all files are of one study; leaves nothing behind
#
# PYTHON, BUNDLE, and the ports below may be set. KEEP=1 lets all run until Ctrl-C, to look at the pages.
set -eu
[ $# -gt 0 ] || { echo "name the DICOM files of a study" >&2; exit 2; }
python=${PYTHON:-python}
export ORTHANC_DICOM_PORT="${ORTHANC_DICOM_PORT:-4242}" ORTHANC_HTTP_PORT="${ORTHANC_HTTP_PORT:-8042}"
export NODE_PORT="${NODE_PORT:-11112}" REPORT_PORT="${REPORT_PORT:-8000}"
work=$(mktemp -d)
pids=
trap 'kill $pids 2> /dev/null || true; wait; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# answer SECONDS URL [TEXT]: print the answer once there is one, with the text in it
answer() {
  "$python" -c '
import sys, time, urllib.request
seconds, url, *text = sys.argv[1:]
end, body = time.monotonic() + float(seconds), None
while body is None or not all(part in body for part in text):
    if time.monotonic() > end:
        sys.exit(1)
    time.sleep(0.1)
    try:
        body = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        pass
print(body)' "$@" || { echo "not in time: $2; the logs:" >&2; tail -n 20 "$work"/*.log >&2; exit 1; }
}

# 1. the archive, which forwards images to the node
ORTHANC_STORAGE="$work/archive" Orthanc deploy/orthanc.json > "$work/orthanc.log" 2>&1 &
pids="$pids $!"

# 2. the service, which reads the archive for its page and shows the worklist
export REPORT_DICOMWEB_URL="http://127.0.0.1:$ORTHANC_HTTP_PORT/dicom-web"
REPORT_BUNDLE="${BUNDLE:-bundles/iu-xray}" REPORT_WORKLIST="$work/node/queue.sqlite" \
  "$python" -m service > "$work/service.log" 2>&1 &
pids="$pids $!"

# 3. the node
REPORT_PACS_PORT="$NODE_PORT" REPORT_PACS_PEERS=ORTHANC REPORT_PACS_DIR="$work/node" REPORT_PACS_SPOOL=true \
  REPORT_PACS_DESTINATION="ORTHANC@127.0.0.1:$ORTHANC_DICOM_PORT" REPORT_PACS_QUIET_S="${QUIET_S:-5}" \
  REPORT_PACS_REPORT_URL="http://127.0.0.1:$REPORT_PORT" REPORT_PACS_STATUS_PORT="${STATUS_PORT:-8011}" \
  "$python" -m service.dicom_node > "$work/node.log" 2>&1 &
pids="$pids $!"
answer 60 "http://127.0.0.1:$ORTHANC_HTTP_PORT/system" > "$work/system"
answer 300 "http://127.0.0.1:$REPORT_PORT/health" > "$work/health"
answer 60 "http://127.0.0.1:${STATUS_PORT:-8011}/health" > "$work/health"
echoscu -aet ORTHANC -aec CXRREPORT 127.0.0.1 "$NODE_PORT"

# 4. a modality sends the study; its structured report comes into the archive
storescu -aet MODALITY -aec ORTHANC 127.0.0.1 "$ORTHANC_DICOM_PORT" "$@"
echo "the study has a structured report:"
answer 120 "http://127.0.0.1:$ORTHANC_HTTP_PORT/dicom-web/instances?Modality=SR" 00080018
if [ -n "${KEEP:-}" ]; then
  echo "http://127.0.0.1:$ORTHANC_HTTP_PORT and http://127.0.0.1:$REPORT_PORT/worklist; Ctrl-C ends all"
  wait
fi
