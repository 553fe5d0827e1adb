import assert from "node:assert/strict";
import { comparisonPicture } from "../../src/run/comparison_picture.ts";
import type { ComparisonTable } from "../../src/run/comparison_table.ts";
import { exampleTable } from "./_example_table.ts";

interface Element {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly children: Element[];
  text: string;
}

/** The root element; throws where the document is not well-formed XML of elements, attributes and text. */
function parseXml(document: string): Element {
  const root: Element = { name: "", attributes: {}, children: [], text: "" };
  const open = [root];
  const token =
    /<(\/?)([a-z]+)((?:\s+[a-zA-Z-]+="(?:[^"<&]|&#\d+;)*")*)\s*(\/?)>|((?:[^<>&]|&#\d+;)+)/y;
  const decoded = (words: string) =>
    words.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)));
  for (let at = 0; at < document.length; at = token.lastIndex) {
    token.lastIndex = at;
    const match = token.exec(document);
    assert.ok(match !== null, `not well-formed: ${document.slice(at, at + 60)}`);
    const [, closing, name = "", attributes = "", empty, words] = match;
    if (words !== undefined) open.at(-1)!.text += decoded(words);
    else if (closing) assert.equal(open.pop()?.name, name);
    else {
      const pairs = [...attributes.matchAll(/([a-zA-Z-]+)="([^"]*)"/g)];
      const own = Object.fromEntries(pairs.map(([, key, value]) => [key, decoded(value!)]));
      assert.equal(Object.keys(own).length, pairs.length, "an attribute stands twice");
      const element: Element = { name, attributes: own, children: [], text: "" };
      open.at(-1)!.children.push(element);
      if (!empty) open.push(element);
    }
  }
  assert.equal(open.length, 1, "an element is left open");
  assert.equal(root.children.length, 1);
  return root.children[0]!;
}

/** The picture of a table, taken apart. */
function pictureOf(table: ComparisonTable) {
  const svg = parseXml(comparisonPicture(table));
  assert.equal(svg.name, "svg");
  const texts = svg.children.filter(({ name }) => name === "text");
  const groups = svg.children.filter(({ name }) => name === "g");
  const group = (title: string) => groups.find(({ children }) => children[0]?.text === title);
  const panels = svg.children.filter(({ name }) => name === "rect").map(({ attributes }) => {
    const [left, width] = [Number(attributes.x), Number(attributes.width)];
    return { left, right: left + width };
  });
  /** From points to pixels, by the labels of a panel's scale: linear in asinh(points / the best student's). */
  const scaleOf = (column: number, best: number) => {
    const { left, right } = panels[column]!;
    const ticks = texts.flatMap(({ text, attributes }): [number, number][] => {
      const at = Number(attributes.x);
      const isTick = attributes["font-size"] === "10" && at >= left && at <= right;
      return isTick ? [[Number(text), at]] : [];
    });
    assert.ok(ticks.length >= 3, `${ticks.length} ticks`);
    const bend = (value: number) => Math.asinh(value / best);
    const zero = ticks.find(([tick]) => tick === 0)![1];
    const [last, end] = ticks.toSorted((a, b) => Math.abs(b[1] - zero) - Math.abs(a[1] - zero))[0]!;
    const x = (points: number) => zero + (end - zero) * bend(points) / bend(last);
    for (const [tick, at] of ticks) near(at, x(tick));
    return x;
  };
  return { svg, texts, groups, group, panels, scaleOf };
}

/** Coordinates are written with two digits, and the scale is read from such. */
function near(found: number, expected: number, tolerance = 0.03): void {
  assert.ok(Math.abs(found - expected) <= tolerance, `found ${found}, expected ${expected}`);
}

const numbersIn = (text: string | undefined) => text!.match(/-?\d+(\.\d+)?/g)!.map(Number);

Deno.test("comparisonPicture() is well-formed and names every row and column as it is", () => {
  const { texts, svg } = pictureOf(exampleTable());
  const words = texts.map(({ text }) => text);
  for (const name of ["min-max", "A|B <&>", "blockwise", "labels"]) {
    assert.equal(words.filter((word) => word === name).length, 1, name);
  }
  assert.deepEqual(words.filter((word) => /^W\dA\d$/.test(word)), ["W8A8", "W2A4"]);
  const [, , width, height] = numbersIn(svg.attributes.viewBox);
  for (const { attributes } of texts) {
    assert.ok(Number(attributes.x) > 0 && Number(attributes.x) < width!);
    assert.ok(Number(attributes.y) > 0 && Number(attributes.y) < height!);
  }
});

Deno.test("comparisonPicture() puts dots at the mean and whiskers one deviation from it", () => {
  const { group, texts, scaleOf } = pictureOf(exampleTable());
  const x = scaleOf(0, 0.1); // the best is at 0: the least knee
  const cases: readonly (readonly [title: string, mean: number, deviation: number])[] = [
    ["min-max W8A8: 0.00 ± 0.10", 0, 0.1],
    ["blockwise W8A8: 1.00 ± 0.00", 1, 0],
    ["labels W8A8: 4.00 ± 1.00", 4, 1],
  ];
  for (const [title, mean, deviation] of cases) {
    const [, whisker, dot] = group(title)!.children;
    const row = texts.find(({ text }) => text === title.split(" ")[0])!;
    near(Number(dot!.attributes.cx), x(mean));
    near(Number(dot!.attributes.cy), Number(row.attributes.y) - 4);
    const [from, y, to, ...ends] = numbersIn(whisker!.attributes.d);
    near(from!, x(mean - deviation));
    near(to!, x(mean + deviation));
    assert.equal(y, Number(dot!.attributes.cy));
    assert.deepEqual([ends[0], ends[3]], [from, to]); // the bars across
  }
});

Deno.test("comparisonPicture() gives each column its panel with its own scale", () => {
  const { group, panels, scaleOf } = pictureOf(exampleTable());
  assert.equal(panels.length, 2);
  assert.ok(panels[1]!.left > panels[0]!.right);
  const [, whisker, dot] = group("blockwise W2A4: 11.00 ± 1.00")!.children;
  const x = scaleOf(1, 11);
  near(Number(dot!.attributes.cx), x(11));
  const [from, , to] = numbersIn(whisker!.attributes.d);
  near(from!, x(10));
  near(to!, x(12));
  const [, , outlier] = group("min-max W2A4: 81.00 ± 1.41")!.children;
  assert.ok(Number(outlier!.attributes.cx) < panels[1]!.right);
});

Deno.test("comparisonPicture() rings the best, tells labels by colour, and shows failures and gaps", () => {
  const { groups, group } = pictureOf(exampleTable());
  const circles = (title: string) =>
    group(title)!.children.filter(({ name }) => name === "circle").length;
  assert.equal(circles("blockwise W2A4: 11.00 ± 1.00"), 2);
  assert.equal(circles("A|B <&> W2A4: 11.40 ± 1.41"), 1);
  const color = (title: string) => group(title)!.attributes.stroke;
  assert.notEqual(color("labels W8A8: 4.00 ± 1.00"), color("blockwise W8A8: 1.00 ± 0.00"));
  assert.equal(group("labels W2A4: lost")!.children[1]!.text, "failed");
  assert.equal(groups.length, 8);
  const gap = pictureOf(exampleTable({ drops: { labels: [[3, 4, 5], []] } }));
  assert.equal(gap.groups.length, 7);
  // A single seed has no whisker.
  const [, only] = pictureOf(exampleTable({ drops: { labels: [[3], []] } }))
    .group("labels W8A8: 3.00")!.children;
  assert.equal(only!.name, "circle");
});

Deno.test("comparisonPicture() of agreement shows what disagrees", () => {
  const { group, scaleOf } = pictureOf(exampleTable({ measure: "agreement" }));
  const x = scaleOf(0, 0.1);
  const [, whisker, dot] = group("labels W8A8: 96.00 ± 1.00")!.children;
  near(Number(dot!.attributes.cx), x(4));
  near(numbersIn(whisker!.attributes.d)[0]!, x(3));
});

Deno.test("comparisonPicture() can be drawn before the first student is there", () => {
  const none = Object.fromEntries(
    ["min-max", "A|B <&>", "blockwise", "labels"].map((name) => [name, []]),
  );
  assert.equal(pictureOf(exampleTable({ drops: none })).groups.length, 0);
});
