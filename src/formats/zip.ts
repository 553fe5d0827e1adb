// Zip archives (PKWARE APPNOTE 6.3) as NumPy writes them: stored or deflated members, no encryption, no zip64, one
// disk. The central directory rules; sizes are checked against the bytes really there and against a cap.
import { crc32, inflateExactly } from "./inflate.ts";
import { BoundedReader, decodeUtf8, quoteName } from "./untrusted.ts";

const END_SIGNATURE = 0x06054b50;
const DIRECTORY_SIGNATURE = 0x02014b50;
const MEMBER_SIGNATURE = 0x04034b50;
const END_BYTES = 22;
const MAX_COMMENT_BYTES = 0xffff;

/**
 * Unpacks every member of an archive.
 *
 * @param bytes the archive
 * @param path its name, for messages
 * @param maxBytes cap on the sum of the members' inflated sizes
 * @returns the members by name, in directory order
 * @throws FormatError when the archive is damaged, larger than the cap or of an unsupported kind
 */
export function unzip(
  bytes: Uint8Array,
  path: string,
  maxBytes: number,
): Map<string, Uint8Array<ArrayBuffer>> {
  const members = readDirectory(bytes, path);
  const total = members.reduce((sum, member) => sum + member.size, 0);
  if (total > maxBytes) {
    throw new BoundedReader(bytes, path)
      .error(`the members inflate to ${total} bytes, the cap is ${maxBytes}`, bytes.length);
  }
  // Overlapping members are how a small archive unpacks to petabytes.
  const byOffset = members.toSorted((a, b) => a.offset - b.offset);
  for (const [i, member] of byOffset.entries()) {
    const next = byOffset[i + 1];
    if (next !== undefined && member.offset + member.compressedSize > next.offset) {
      throw new BoundedReader(bytes, path)
        .error(
          `members ${quoteName(member.name)} and ${quoteName(next.name)} overlap`,
          next.offset,
        );
    }
  }
  return new Map(members.map((member) => [member.name, readMember(bytes, path, member)]));
}

interface Member {
  readonly name: string;
  readonly method: number;
  readonly crc: number;
  readonly compressedSize: number;
  readonly size: number;
  readonly offset: number;
}

function readDirectory(bytes: Uint8Array, path: string): Member[] {
  const reader = new BoundedReader(bytes, path, { littleEndian: true });
  reader.offset = findEnd(bytes, reader);
  reader.take(10, "end of central directory");
  const count = reader.uint16("member count");
  const size = reader.uint32("directory size");
  const offset = reader.uint32("directory offset");
  if (count === 0xffff || offset === 0xffffffff) {
    throw reader.error("the archive is zip64, which is not supported");
  }
  if (offset + size > bytes.length) {
    throw reader.error(`the directory ends at byte ${offset + size}, the file at ${bytes.length}`);
  }
  reader.offset = offset;
  const members: Member[] = [];
  const names = new Set<string>();
  for (let i = 0; i < count; i++) {
    const at = reader.offset;
    const member = readDirectoryEntry(reader);
    if (names.has(member.name)) {
      throw reader.error(`member ${quoteName(member.name)} is there twice`, at);
    }
    names.add(member.name);
    members.push(member);
  }
  return members;
}

function findEnd(bytes: Uint8Array, reader: BoundedReader): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const last = bytes.length - END_BYTES;
  for (let at = last; at >= 0 && at >= last - MAX_COMMENT_BYTES; at--) {
    if (
      view.getUint32(at, true) === END_SIGNATURE &&
      at + END_BYTES + view.getUint16(at + 20, true) === bytes.length
    ) return at;
  }
  throw reader.error("no end of central directory, expected a zip archive (truncated?)");
}

function readDirectoryEntry(reader: BoundedReader): Member {
  const at = reader.offset;
  if (reader.uint32("directory entry") !== DIRECTORY_SIGNATURE) {
    throw reader.error("directory entry expected", at);
  }
  reader.take(4, "directory entry");
  const flags = reader.uint16("flags");
  const method = reader.uint16("method");
  reader.take(4, "time");
  const crc = reader.uint32("checksum");
  const compressedSize = reader.uint32("compressed size");
  const size = reader.uint32("size");
  const nameSize = reader.uint16("name size");
  const extraSize = reader.uint16("extra size");
  const commentSize = reader.uint16("comment size");
  reader.take(8, "directory entry");
  const offset = reader.uint32("member offset");
  const name = decodeUtf8(reader.take(nameSize, "name"), (detail) => reader.error(detail, at));
  reader.take(extraSize + commentSize, "extra field and comment");
  if (flags & 1) throw reader.error(`member ${quoteName(name)} is encrypted`, at);
  if (method !== 0 && method !== 8) {
    throw reader.error(
      `member ${quoteName(name)} has method ${method}, expected 0 (stored) or 8 (deflate)`,
      at,
    );
  }
  if ([compressedSize, size, offset].includes(0xffffffff)) {
    throw reader.error(`member ${quoteName(name)} is zip64, which is not supported`, at);
  }
  return { name, method, crc, compressedSize, size, offset };
}

function readMember(bytes: Uint8Array, path: string, member: Member): Uint8Array<ArrayBuffer> {
  const reader = new BoundedReader(bytes, path, { littleEndian: true });
  const name = quoteName(member.name);
  if (member.offset > bytes.length) {
    throw reader.error(`member ${name} begins at byte ${member.offset}, past the end`);
  }
  reader.offset = member.offset;
  if (reader.uint32("member header") !== MEMBER_SIGNATURE) {
    throw reader.error(`header of member ${name} expected`, member.offset);
  }
  reader.take(22, "member header");
  reader.take(reader.uint16("name size") + reader.uint16("extra size"), "name and extra field");
  const start = reader.offset;
  const compressed = reader.take(member.compressedSize, `member ${name}`);
  const error = (detail: string) => reader.error(`member ${name}: ${detail}`, start);
  if (member.method === 0 && member.size !== member.compressedSize) {
    throw error(`stored as ${member.compressedSize} bytes, but ${member.size} are declared`);
  }
  const data = member.method === 0
    ? Uint8Array.from(compressed)
    : inflateExactly(compressed, member.size, error);
  if (crc32(data) !== member.crc) throw error("the checksum does not match (damaged?)");
  return data;
}
