// JSON (RFC 8259) from outside: no duplicate keys, no numbers that lose value, bounded depth, a place in every error.
// JSON.parse keeps the last of two equal keys, rounds 2^53 + 1 and makes 1e400 infinite. Objects become Maps, so that a
// key such as __proto__ is only a key.
import { FormatError } from "../core/errors.ts";
import { quoteName } from "./untrusted.ts";

/** A parsed JSON value. */
export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;

/** A parsed JSON object, keys in file order. */
export type JsonObject = ReadonlyMap<string, JsonValue>;

const MAX_DEPTH = 64;

/**
 * Parses a whole JSON text.
 *
 * @param text the text
 * @param path name of the file, for messages
 * @returns the value
 * @throws FormatError naming the character where the text stops being acceptable
 */
export function parseStrictJson(text: string, path: string): JsonValue {
  return new Parser(text, path).parse();
}

class Parser {
  #at = 0;
  readonly #text: string;
  readonly #path: string;

  constructor(text: string, path: string) {
    this.#text = text;
    this.#path = path;
  }

  parse(): JsonValue {
    const value = this.#value(0);
    this.#space();
    if (this.#at < this.#text.length) throw this.#error("text follows the value");
    return value;
  }

  #value(depth: number): JsonValue {
    if (depth > MAX_DEPTH) throw this.#error(`nested deeper than ${MAX_DEPTH} levels`);
    this.#space();
    const first = this.#text[this.#at];
    if (first === "{") return this.#object(depth);
    if (first === "[") return this.#array(depth);
    if (first === '"') return this.#string();
    for (const [word, value] of WORDS) {
      if (this.#text.startsWith(word, this.#at)) {
        this.#at += word.length;
        return value;
      }
    }
    return this.#number();
  }

  #object(depth: number): JsonObject {
    const object = new Map<string, JsonValue>();
    this.#at++;
    this.#space();
    if (this.#skip("}")) return object;
    do {
      this.#space();
      const start = this.#at;
      if (this.#text[start] !== '"') throw this.#error("a key in double quotes expected");
      const key = this.#string();
      if (object.has(key)) throw this.#error(`key ${quoteName(key)} is there twice`, start);
      this.#space();
      if (!this.#skip(":")) throw this.#error('":" expected');
      object.set(key, this.#value(depth + 1));
      this.#space();
    } while (this.#skip(","));
    if (!this.#skip("}")) throw this.#error('"," or "}" expected');
    return object;
  }

  #array(depth: number): JsonValue[] {
    const array: JsonValue[] = [];
    this.#at++;
    this.#space();
    if (this.#skip("]")) return array;
    do {
      array.push(this.#value(depth + 1));
      this.#space();
    } while (this.#skip(","));
    if (!this.#skip("]")) throw this.#error('"," or "]" expected');
    return array;
  }

  #string(): string {
    const start = this.#at++;
    for (;;) {
      const character = this.#text[this.#at++];
      if (character === undefined) throw this.#error("the string has no end", start);
      if (character === "\\") this.#at++;
      if (character === '"') break;
    }
    try {
      // JSON.parse of one string literal is exact; it also refuses control characters and bad escapes.
      return JSON.parse(this.#text.slice(start, this.#at)) as string;
    } catch {
      throw this.#error("the string has a bad escape or a control character", start);
    }
  }

  #number(): number {
    const literal = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
    literal.lastIndex = this.#at;
    const found = literal.exec(this.#text)?.[0];
    if (found === undefined) {
      throw this.#error(this.#at < this.#text.length ? "a JSON value expected" : "the text ends");
    }
    const value = Number(found);
    const isInteger = /^-?\d+$/.test(found);
    if (!Number.isFinite(value) || (isInteger && !Number.isSafeInteger(value))) {
      throw this.#error(`number ${found.slice(0, 40)} is too large`);
    }
    this.#at += found.length;
    return value;
  }

  #space(): void {
    while (" \t\r\n".includes(this.#text[this.#at] ?? "x")) this.#at++;
  }

  #skip(character: string): boolean {
    if (this.#text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #error(detail: string, at: number = this.#at): FormatError {
    return new FormatError(this.#path, `JSON character ${at}`, detail);
  }
}

const WORDS = [["true", true], ["false", false], ["null", null]] as const;
