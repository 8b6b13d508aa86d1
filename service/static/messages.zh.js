// The service's English messages in Chinese, sentence by sentence: [pattern of a sentence, translation with its values].
// A message with a sentence that is not here keeps its English text after a translated remedy.

import { sentencesOf } from "./compare.js";

const WORDS = {
  frontal: "正位", lateral: "侧位", "another projection": "其他体位", "the image for presentation": "显示用图像",
  top_k: "参考病例数", beam_size: "束宽", JPEG: "JPEG 文件", PNG: "PNG 文件", "EXIF block": "EXIF 数据块",
  "DICOM image": "DICOM 图像", "DICOM header": "DICOM 文件头", "DICOM palette": "DICOM 调色板", "JPEG 2000 image": "JPEG 2000 图像",
  chunks: "个数据块", "chunks besides pixels": "个像素以外的数据块", "compressed texts and profiles": "个压缩文本和色彩描述",
  "bytes of metadata": "字节元数据", segments: "个数据段", scans: "次扫描", "bytes between segments": "字节段间填充",
  "bytes of tables": "字节表格", "blocks in all scans": "个扫描数据块", entries: "个条目", "items in a sequence": "个序列条目",
  "bytes in its offset table": "字节偏移表", "packets and code-blocks": "个数据包和码块",
  "AVIF, HEIC or video": "AVIF、HEIC 或视频", "CT Image Storage": "CT 图像", "MR Image Storage": "MR 图像",
  "an object of a non-standard class": "非标准类型的对象", "a region other than the chest": "胸部以外的部位",
  "is mirrored": "为镜像", "is not upright": "并非直立", "One sentence": "有一句", it: "它", them: "它们",
};

const PATTERNS = [
  // remedies
  [/^Send a PNG, JPEG or DICOM file(?:, or leave it out)?\.$/, "请改用 PNG、JPEG 或 DICOM 文件。"],
  [/^Export (?:the image|it) again(?: and resend it)?\.$/, "请重新导出后再发送。"],
  [/^Export the image again and resend it, or correct the element\.$/, "请重新导出后再发送，或更正该元素。"],
  [/^Export the image uncompressed and resend it\.$/, "请以不压缩的方式重新导出后再发送。"],
  [/^Export it as a DICOM file \(Part 10\) and resend it\.$/, "请导出为 DICOM 文件（第 10 部分）后再发送。"],
  [/^Send it at a lower resolution\.$/, "请降低分辨率后再发送。"],
  [/^Send the radiograph itself, not an icon or thumbnail\.$/, "请发送胸片原图，而不是缩略图。"],
  [/^Save the image again, without metadata, and resend it\.$/, "请不带元数据另存后再发送。"],
  [/^Send it uncompressed or smaller\.$/, "请以不压缩的方式或缩小后再发送。"],
  [/^Send it uncompressed \(Explicit VR Little Endian\)(?:, or install one in the service \(pip install '[^']+'\))?\.$/, "请以不压缩的方式（Explicit VR Little Endian）重新导出。"],
  [/^Send another\.$/, "请改用其他文件。"],
  [/^Send a single(?: still)? image\.$/, "请发送单帧静态图像。"],
  [/^Send the image object of the study\.$/, "请发送该检查的图像对象。"],
  [/^Send the image for presentation of the same exposure\.$/, "请发送同一次曝光的供显示（FOR PRESENTATION）的图像。"],
  [/^Send a CR, DX or secondary capture image of the chest\.$/, "请发送 CR、DX 或二次捕获的胸片。"],
  [/^Send 8 to 16 bits per sample\.$/, "请使用每个采样 8 至 16 位的图像。"],
  [/^Reduce it\.$/, "请缩小后再发送。"],
  [/^(?:Check the connection and t|T)ry again(?: in a moment)?\.$/, "请稍后再试。"],
  [/^Send at least one of them as a file\.$/, "请至少提供一个体位的图像。"],
  [/^Send a whole number from (\d+) to (\d+), or leave it out\.$/, "请输入 $1 至 $2 的整数，或留空。"],
  [/^Send (?:it|the form|the request)(?: as| the| once| whole).*\.$/, "请重新发送。"],
  // images
  [/^The image is empty \((\d+) bytes\)\.$/, "文件为空（$1 字节）。"],
  [/^The field (\w+) is empty\.$/, "“$1”为空。"],
  [/^(.+) files are not supported\.$/, "不支持 $1 文件。"],
  [/^These ([\d,]+) bytes are not an image\.$/, "这 $1 字节不是图像。"],
  [/^The image file is cut short or damaged\.$/, "图像文件损坏或不完整。"],
  [/^The image file is damaged: its decoder crashed\.$/, "图像文件损坏，无法解码。"],
  [/^The image is ([\d,]+) x ([\d,]+) pixels; at least ([\d,]+) on each side are needed\.$/, "图像为 $1 x $2 像素，每边至少需要 $3 像素。"],
  [/^The image is ([\d,]+) x ([\d,]+) pixels; at most ([\d,]+) pixels are read\.$/, "图像为 $1 x $2 像素，最多读取 $3 像素。"],
  [/^The image has too many pixels; at most ([\d,]+) pixels are read\.$/, "图像像素过多，最多读取 $1 像素。"],
  [/^The (.+) has more than ([\d,]+) (\D+)\.$/, "$1中有超过 $2 $3。"],
  [/^Decoding the image takes more than ([\d.,e+]+) s of processor time\.$/, "图像解码需要超过 $1 秒的处理器时间。"],
  [/^Decoding the image takes more than ([\d,]+) bytes of memory\.$/, "图像解码需要超过 $1 字节内存。"],
  [/^The (?:image|DICOM object) has ([\d,]+) frames\.$/, "图像有 $1 帧。"],
  [/^The file in (\w+) is larger than ([\d,]+) bytes\.$/, "$1图像大于 $2 字节。"],
  [/^The body is larger than ([\d,]+) bytes\.$/, "上传内容大于 $1 字节。"],
  [/^Neither frontal nor lateral was sent\.$/, "没有收到正位或侧位图像。"],
  // DICOM
  [/^The DICOM object is a digital X-ray image for processing, raw detector values\.$/, "这是未经显示处理的 DX 图像（FOR PROCESSING）。"],
  [/^The DICOM object is (.+), not a radiograph\.$/, "此 DICOM 对象是 $1，不是 X 线片。"],
  [/^The DICOM (.+) has modality (\w+), not a radiograph\.$/, "此 DICOM 对象的设备类型为 $2，不是 X 线片。"],
  [/^The DICOM object has no pixel data\.$/, "此 DICOM 对象没有像素数据。"],
  [/^The DICOM object has (\w+), which is not supported\.$/, "不支持此 DICOM 对象的 $1。"],
  [/^The transfer syntax is (.+), which is not supported\.$/, "不支持传输语法 $1。"],
  [/^The transfer syntax is (.+), for which no codec is installed\.$/, "没有安装传输语法 $1 的解码器。"],
  [/^The transfer syntax is not a standard one\.$/, "传输语法不是标准语法。"],
  [/^Colour in (.+) is not supported\.$/, "不支持 $1 的彩色图像。"],
  [/^The DICOM file is cut short within its header\.$/, "DICOM 文件在文件头处中断。"],
  [/^The DICOM file is damaged \((\w+)\)\.$/, "DICOM 文件损坏（$1）。"],
  [/^The DICOM file lacks its meta information, and with it the transfer syntax of its compressed pixels\.$/, "DICOM 文件缺少元信息，因而缺少其压缩像素的传输语法。"],
  [/^The DICOM header lacks (\w+)\.$/, "DICOM 文件头缺少 $1。"],
  [/^(\w+) of the DICOM header is not a (?:whole )?number\.$/, "DICOM 文件头中的 $1 不是有效的数。"],
  [/^The DICOM header is (?:nested too deeply|larger than any image needs)\.$/, "DICOM 文件头过大或嵌套过深。"],
  [/^The DICOM element (\w+) has ([\d,]+) bytes, over ([\d,]+)\.$/, "DICOM 元素 $1 有 $2 字节，超过 $3。"],
  [/^The DICOM pixel data is cut short\.$/, "DICOM 像素数据不完整。"],
  [/^The DICOM pixel data is not a frame of its transfer syntax\.$/, "DICOM 像素数据与其传输语法不符。"],
  [/^The DICOM pixel data does not match its transfer syntax\.$/, "DICOM 像素数据与其传输语法不符。"],
  [/^The DICOM pixel data holds ([\d,]+) bytes; ([\d,]+) x ([\d,]+) pixels need ([\d,]+)\.$/, "DICOM 像素数据有 $1 字节，而 $2 x $3 像素需要 $4 字节。"],
  [/^The DICOM pixel data cannot be decoded \((\w+)\)\.$/, "无法解码 DICOM 像素数据（$1）。"],
  [/^The fragments of the DICOM pixel data are damaged\.$/, "DICOM 像素数据的分片损坏。"],
  [/^The DICOM pixel data is a lossy JPEG of (\d+) bits, its header says .+\.$/, "DICOM 像素数据是 $1 位有损 JPEG，与文件头不符。"],
  [/^The DICOM pixel data is a lossy frame of (\d+) bits with values beyond BitsStored (\d+)\.$/, "DICOM 像素数据是 $1 位有损图像，其数值超出 BitsStored $2。"],
  [/^The PhotometricInterpretation is missing or not one of (.+)\.$/, "PhotometricInterpretation 缺失，或不是以下之一：$1。"],
  [/^(\d+) samples per pixel do not fit (.*)\.$/, "每像素 $1 个采样与 $2 不符。"],
  [/^(\d+) bits allocated and (\d+) stored are not supported\.$/, "不支持分配 $1 位、存储 $2 位的像素。"],
  [/^BitsAllocated (\d+), BitsStored (\d+) and HighBit (\d+) contradict each other\.$/, "BitsAllocated $1、BitsStored $2 与 HighBit $3 互相矛盾。"],
  [/^The compressed frame is (.+) of (\d+) bits, its DICOM header has (.+) of (\d+) bits\.$/, "压缩图像为 $1、$2 位，而 DICOM 文件头为 $3、$4 位。"],
  [/^RescaleSlope of the DICOM header is 0: all pixels would be equal\.$/, "DICOM 文件头的 RescaleSlope 为 0，所有像素将相同。"],
  [/^A lookup table of ([\d,]+) entries of (\d+) bits is not supported\.$/, "不支持 $1 个条目、$2 位的查找表。"],
  [/^A lookup table holds ([\d,]+) of ([\d,]+) entries\.$/, "查找表只有 $2 个条目中的 $1 个。"],
  // numbers, the service
  [/^(top_k|beam_size) is (.+)\.$/, "“$1”为 $2。"],
  [/^Try again in a moment: all (\d+) slots are in use\.$/, "全部 $1 个处理名额都在使用，请稍后再试。"],
  [/^Try again in a moment: (?!all).+\.$/, "服务正忙，请稍后再试。"],
  [/^The (?:draft|picture) was not ready within ([\d.e+]+) s \(REPORT_REQUEST_TIMEOUT_S\)\.$/, "在 $1 秒（REPORT_REQUEST_TIMEOUT_S）内未能完成。"],
  [/^The body did not arrive within ([\d.]+) s\.$/, "上传未在 $1 秒内完成。"],
  [/^The body did not arrive within ([\d.]+) s, came at less than (\d+) KiB\/s, or paused for ([\d.]+) s\.$/, "上传未在 $1 秒内完成，或慢于每秒 $2 KiB，或停顿 $3 秒。"],
  [/^The device has too little memory for this study\.$/, "设备内存不足以处理此检查。"],
  [/^The model is being loaded; try again in a few seconds\.$/, "模型正在加载，请过几秒再试。"],
  [/^The service is stopping; send the request again in a moment\.$/, "服务正在停止，请稍后再试。"],
  [/^The process that drafted this study was lost, and so was its replacement\.$/, "生成草稿的进程丢失，替代进程也丢失。"],
  [/^This request could not be answered; others are not affected\.$/, "此请求无法答复，其他请求不受影响。"],
  [/^The service log says where it failed\.$/, "原因见服务日志。"],
  // warnings
  [/^No (frontal|lateral) image was given; the draft uses one view\.$/, "没有$1图像；草稿仅依据一个体位。"],
  [/^This bundle has no reference cases; the draft is based on the images alone\.$/, "此模型没有参考病例；草稿仅依据图像。"],
  [/^The model wrote nothing for these images\.$/, "模型对这些图像什么也没有写。"],
  [/^(One sentence) has a present or possible finding that neither a reference case nor the images support\.$/, "$1提到了参考病例和图像都不支持的征象。"],
  [/^(\d+) sentences have a present or possible finding that neither a reference case nor the images support\.$/, "有 $1 句提到了参考病例和图像都不支持的征象。"],
  [/^Check (it|them) first\.$/, "请先核对。"],
  [/^The images seem to be swapped: the one sent as frontal is a lateral, the other a frontal\.$/, "两个体位似乎放反了：正位处是侧位片，侧位处是正位片。"],
  [/^They were swapped back\.$/, "已按正确体位读取。"],
  [/^The image sent as (\w+) looks like a (\w+) and was read as one\.$/, "放在$1处的图像看起来是$2片，已按$2读取。"],
  [/^Both images look like (\w+) views\.$/, "两幅图像看起来都是$1片。"],
  [/^They were read as sent; check that the right files were chosen\.$/, "已按所放体位读取，请核对文件。"],
  [/^The (\w+) image differs from the training radiographs: it may show no chest, be rotated or be a negative\.$/, "$1图像与训练所用的胸片差别很大：可能不是胸部、已旋转或黑白颠倒。"],
  [/^The draft may be invalid\.$/, "草稿可能毫无意义。"],
  [/^The (\w+) image: its DICOM header says (frontal|lateral|another projection|[A-Z]+)\.$/, "$1图像：DICOM 文件头写的是$2。"],
  [/^Check that the views were not swapped\.$/, "请核对两个体位是否放反。"],
  [/^The (\w+) image: its DICOM header says (.+); the model was trained on chests only\.$/, "$1图像：DICOM 文件头写的部位是$2；模型只用胸片训练。"],
  [/^The (\w+) image: its DICOM header says that rows run to (\w+) and columns to (\w+), so that it (is mirrored|is not upright); it was read unchanged\.$/, "$1图像：DICOM 文件头显示行朝向 $2、列朝向 $3，图像$4；像素未作改动。"],
  [/^The (\w+) image: it is a frame of angiography or fluoroscopy; the model was trained on radiographs only\.$/, "$1图像：这是造影或透视的单帧；模型只用 X 线片训练。"],
  [/^The (\w+) image: its DICOM window maps all values to one grey; the full range of values was used instead\.$/, "$1图像：DICOM 窗宽窗位使所有像素同为一个灰度，已改用全部灰度范围。"],
  [/^The (\w+) image: its DICOM VOI LUT says (\d+) bits, but its entries go to (\d+); they were spread over all greys\.$/, "$1图像：DICOM VOI 查找表声明为 $2 位，而数值达到 $3；已扩展到全部灰度。"],
  [/^The (\w+) image: its DICOM header says (\w+) and PresentationLUTShape (\w+); it was read with the lowest value white\.$/, "$1图像：DICOM 文件头写有 $2 和 PresentationLUTShape $3；已按最低值为白读取。"],
  [/^Check that it is not inverted\.$/, "请核对图像是否反相。"],
];

/** The Chinese text of an English message; null if one of its sentences is unknown. */
export function translated(message) {
  const sentences = sentencesOf(message).map(translatedSentence);
  return sentences.includes(null) ? null : sentences.join("");
}

function translatedSentence(sentence) {
  for (const [pattern, text] of PATTERNS) {
    const found = pattern.exec(sentence);
    if (found) return text.replace(/\$(\d)/g, (_, group) => WORDS[found[group]] ?? found[group]);
  }
  return null;
}
