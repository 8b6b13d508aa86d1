// Reads zip archives (APPNOTE 6.3) within bounds: the central directory, and from each entry only the bytes that are needed.

const END = 0x06054b50; // signatures of the records
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
const END_BYTES = 22;
const MAX_COMMENT = 65_535;
const MAX_DIRECTORY_BYTES = 4 * 2 ** 20;
const STORED = 0;
const DEFLATED = 8;
const UTF_8 = 0x800;
const ENCRYPTED = 1;

/** What is wrong with an archive or an entry; `reason` is the end of a key `left.…` of the dictionary. */
export class ZipError extends Error {
  constructor(reason) {
    super(reason);
    this.reason = reason;
  }
}

/**
 * The files of an archive: {name, size, head(count), file()}, the first `most` of them.
 * @param {Blob} archive
 * @throws {ZipError} damaged: no zip archive, cut short, in several parts, or larger than 4 GiB (ZIP64)
 */
export async function zipEntries(archive, most) {
  const tail = await bytesOf(archive.slice(Math.max(0, archive.size - END_BYTES - MAX_COMMENT)));
  const end = findEnd(tail);
  if (end < 0) throw new ZipError("damaged");
  const record = new DataView(tail.buffer, end);
  const [count, size, start] = [record.getUint16(10, true), record.getUint32(12, true), record.getUint32(16, true)];
  if (record.getUint16(4, true) !== 0 || size > MAX_DIRECTORY_BYTES || start + size > archive.size) throw new ZipError("damaged");
  return parseDirectory(await bytesOf(archive.slice(start, start + size)), count, archive)
    .filter(({ name }) => !name.endsWith("/"))
    .slice(0, most);
}

function findEnd(tail) {
  const view = new DataView(tail.buffer);
  for (let at = tail.length - END_BYTES; at >= 0; at--) if (view.getUint32(at, true) === END) return at;
  return -1;
}

function parseDirectory(bytes, count, archive) {
  const view = new DataView(bytes.buffer);
  const entries = [];
  for (let at = 0; entries.length < count; ) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== CENTRAL) throw new ZipError("damaged");
    const [flags, method, crc] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true), view.getUint32(at + 16, true)];
    const [packed, size, offset] = [20, 24, 42].map((field) => view.getUint32(at + field, true));
    const [name, extra, comment] = [28, 30, 32].map((field) => view.getUint16(at + field, true));
    const text = new TextDecoder(flags & UTF_8 ? "utf-8" : "latin1").decode(bytes.subarray(at + 46, at + 46 + name));
    entries.push(new Entry(archive, { name: text, flags, method, crc, packed, size, offset }));
    at += 46 + name + extra + comment;
  }
  return entries;
}

class Entry {
  constructor(archive, record) {
    this.name = record.name;
    this.size = record.size;
    this.archive = archive;
    this.record = record;
  }

  /** The first bytes; decompression stops there. */
  async head(count) {
    return this.#read(Math.min(count, this.size), false);
  }

  /** The whole entry as a file. */
  async file() {
    const bytes = await this.#read(this.size, true);
    if (crc32(bytes) !== this.record.crc) throw new ZipError("damaged");
    return new File([bytes], this.name.split("/").pop());
  }

  /** Exactly `count` bytes; with `isWhole` the entry must have no more. */
  async #read(count, isWhole) {
    const reader = (await this.#stream()).getReader();
    const bytes = new Uint8Array(count);
    let filled = 0;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        if (isWhole && filled + value.length > count) throw new ZipError("damaged");
        bytes.set(value.subarray(0, count - filled), filled);
        filled += Math.min(value.length, count - filled);
        if (!isWhole && filled === count) break;
      }
    } catch {
      throw new ZipError("damaged");
    } finally {
      reader.cancel().catch(() => {});
    }
    if (filled < count) throw new ZipError("damaged");
    return bytes;
  }

  async #stream() {
    const { flags, method, packed, offset } = this.record;
    if (flags & ENCRYPTED) throw new ZipError("encrypted");
    if (method !== STORED && method !== DEFLATED) throw new ZipError("method");
    const header = new DataView((await bytesOf(this.archive.slice(offset, offset + 30))).buffer);
    if (header.byteLength < 30 || header.getUint32(0, true) !== LOCAL) throw new ZipError("damaged");
    const start = offset + 30 + header.getUint16(26, true) + header.getUint16(28, true);
    const data = this.archive.slice(start, start + packed).stream();
    return method === STORED ? data : data.pipeThrough(new DecompressionStream("deflate-raw"));
  }
}

export const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
