import assert from "node:assert/strict";
import { type JsonValue, parseStrictJson } from "../../src/formats/strict_json.ts";
import { assertRefused, PATH } from "./_refused.ts";

Deno.test("parseStrictJson() agrees with JSON.parse on what both accept", () => {
  const texts = [
    ' {"a": [1, -2.5e-3, true, false, null, {"b": "\\u00e9\\n\\"\\\\ü"}], "": {}, "c": []}\r\n',
    "0",
    "-0",
    '"\\\\"',
    "[9007199254740991]",
  ];
  for (const text of texts) {
    assert.deepEqual(plain(parseStrictJson(text, PATH)), JSON.parse(text));
  }
});

Deno.test("parseStrictJson() keeps __proto__ a key like any other", () => {
  const value = parseStrictJson('{"__proto__": 1}', PATH);
  assert.deepEqual(value, new Map([["__proto__", 1]]));
});

const REFUSED: readonly [text: string, message: RegExp][] = [
  ['{"a":1,"a":2}', /character 7: key "a" is there twice/],
  ['{"a":1,"\\u0061":2}', /twice/],
  ["9007199254740993", /too large/],
  ["1e400", /too large/],
  ["[".repeat(100_000), /nested deeper than 64/],
  ["", /the text ends/],
  ["[1,]", /a JSON value expected/],
  ["[1", /"," or "\]" expected/],
  ['{"a"', /":" expected/],
  ['{"a":1', /"," or "}" expected/],
  ["{a:1}", /key in double quotes/],
  ["01", /text follows/],
  ["NaN", /a JSON value expected/],
  ["'a'", /a JSON value expected/],
  ['"a', /no end/],
  ['"\\x"', /bad escape/],
  ['"\n"', /control character/],
  ["\ufeff1", /a JSON value expected/],
  ["1 2", /character 2: text follows/],
];

for (const [text, message] of REFUSED) {
  Deno.test(`parseStrictJson() refuses ${JSON.stringify(text.slice(0, 30))}`, () => {
    assertRefused(() => parseStrictJson(text, PATH), message);
  });
}

function plain(value: JsonValue): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (!(value instanceof Map)) return value;
  return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
}
