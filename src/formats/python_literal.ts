// The part of Python's literal syntax that stands in .npy headers: dictionaries, tuples, lists, strings, integers,
// True and False. Nothing is evaluated.

/** A parsed literal; tuples and lists are arrays. */
export type PythonLiteral =
  | string
  | number
  | boolean
  | readonly PythonLiteral[]
  | ReadonlyMap<string, PythonLiteral>;

const MAX_DEPTH = 8;

/**
 * Parses a whole text as one literal.
 *
 * @param text the text
 * @param error makes the error of a character of the text
 * @returns the value
 * @throws what `error` makes, when the text is anything else
 */
export function parsePythonLiteral(
  text: string,
  error: (detail: string, at: number) => Error,
): PythonLiteral {
  const tokens = tokenize(text, error);
  let next = 0;
  const value = parseValue(0);
  if (next < tokens.length) throw unexpected("the end of the header");
  return value;

  function parseValue(depth: number): PythonLiteral {
    if (depth > MAX_DEPTH) throw unexpected(`at most ${MAX_DEPTH} levels`);
    const token = tokens[next];
    if (token === undefined) throw unexpected("a value");
    next++;
    if (token.text === "{") return parseDictionary(depth);
    if (token.text === "(") return parseSequence(")", depth);
    if (token.text === "[") return parseSequence("]", depth);
    if (token.text === "True") return true;
    if (token.text === "False") return false;
    if (/^['"]/.test(token.text)) return token.text.slice(1, -1);
    const integer = Number(token.text.replace("L", ""));
    if (/^\d+L?$/.test(token.text) && Number.isSafeInteger(integer)) return integer;
    next--;
    throw unexpected("a string, True, False or an integer from 0 to 2^53 - 1");
  }

  function parseSequence(close: string, depth: number): PythonLiteral[] {
    const items: PythonLiteral[] = [];
    while (!skip(close)) {
      items.push(parseValue(depth + 1));
      if (skip(",")) continue;
      if (!skip(close)) throw unexpected(`"," or "${close}"`);
      break;
    }
    return items;
  }

  function parseDictionary(depth: number): ReadonlyMap<string, PythonLiteral> {
    const entries = new Map<string, PythonLiteral>();
    while (!skip("}")) {
      const key = parseValue(depth + 1);
      if (typeof key !== "string" || entries.has(key)) {
        next--;
        throw unexpected("a key that is a string and not there yet");
      }
      if (!skip(":")) throw unexpected('":"');
      entries.set(key, parseValue(depth + 1));
      if (skip(",")) continue;
      if (!skip("}")) throw unexpected('"," or "}"');
      break;
    }
    return entries;
  }

  function skip(token: string): boolean {
    if (tokens[next]?.text !== token) return false;
    next++;
    return true;
  }

  function unexpected(expected: string): Error {
    const token = tokens[next];
    const found = token === undefined ? "the header ends" : `found ${JSON.stringify(token.text)}`;
    return error(`${found}, expected ${expected}`, token?.at ?? text.length);
  }
}

interface Token {
  readonly text: string;
  readonly at: number;
}

function tokenize(text: string, error: (detail: string, at: number) => Error): Token[] {
  const tokens: Token[] = [];
  const pattern = /\s*(?:([{}()[\]:,]|\d+L?|[A-Za-z]+|-\d+|'[^'\\\n]*'|"[^"\\\n]*")|$)/y;
  while (pattern.lastIndex < text.length) {
    const from = pattern.lastIndex;
    const match = pattern.exec(text);
    if (match === null) {
      const at = from + text.slice(from).search(/\S/);
      throw error(`character ${JSON.stringify(text[at])} does not belong in a header`, at);
    }
    if (match[1] === undefined) break;
    tokens.push({ text: match[1], at: pattern.lastIndex - match[1].length });
  }
  return tokens;
}
