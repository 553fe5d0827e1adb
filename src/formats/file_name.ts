// File names from tensor names, which come from outside and may hold separators, "..", control characters or names that
// an operating system reserves. The result is only readable, not reversible: the manifest maps it back.

/** Names Windows gives to devices, with any ending. */
const RESERVED = /^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)/i;

const MAX_STEM_CHARACTERS = 80;

/**
 * A file name that is safe on every file system and not taken.
 *
 * @param name tensor name, any text
 * @param ending e.g. ".scale.npy"
 * @param taken lower-case names in use; the new one is added
 * @returns ASCII letters, digits, "_", "-" and ".", not beginning with "."
 */
export function safeFileName(name: string, ending: string, taken: Set<string>): string {
  let stem = name.slice(0, MAX_STEM_CHARACTERS).replace(/[^A-Za-z0-9_.-]/g, "_")
    .replace(/\.\.+/g, "_").replace(/^[.-]|\.$/g, "_");
  if (stem === "" || RESERVED.test(stem)) stem = `_${stem}`;
  let fileName = `${stem}${ending}`;
  // Compared in lower case: "A" and "a" are one file on macOS and Windows.
  for (let i = 1; taken.has(fileName.toLowerCase()); i++) fileName = `${stem}-${i}${ending}`;
  taken.add(fileName.toLowerCase());
  return fileName;
}
