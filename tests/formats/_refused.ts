// Asserts the one way every parser refuses a file: FormatError or UnsupportedError, one line, with the file's name.
import assert from "node:assert/strict";
import { FormatError, UnsupportedError } from "../../src/core/errors.ts";

/** Name every test gives to its bytes. */
export const PATH = "given/file";

/**
 * @param decode the call that must throw
 * @param message what the message must say
 */
export function assertRefused(decode: () => unknown, message: RegExp): void {
  let thrown: unknown;
  try {
    decode();
  } catch (error) {
    thrown = error;
  }
  assert.ok(
    thrown instanceof FormatError || thrown instanceof UnsupportedError,
    `expected FormatError or UnsupportedError, got ${thrown}`,
  );
  assert.match(thrown.message, message);
  assert.ok(thrown.message.includes(PATH), `"${thrown.message}" does not name the file`);
  // deno-lint-ignore no-control-regex -- that is what is looked for
  assert.doesNotMatch(thrown.message, /[\u0000-\u001f\u007f]/, "more than one clean line");
}

/**
 * @param base64 text
 * @returns its bytes
 */
export function fromBase64(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
