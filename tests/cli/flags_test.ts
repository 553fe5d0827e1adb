import assert from "node:assert/strict";
import { join } from "node:path";
import { parseFlags, recipeOf, UsageError } from "../../src/cli/flags.ts";
import { DEFAULT_RECIPE } from "../../src/distill/recipe.ts";

Deno.test("parseFlags() and recipeOf() turn the issue's command line into a recipe", () => {
  const line = "--model resnet20.onnx --calibration train_x.npy --evaluate test_x.npy " +
    "--labels test_y.npy --mean 0.485,0.456,0.406 --std=0.229,0.224,0.225 --weight-bits 4 " +
    "--activation-bits 4 --scale null --augment-flip false --out runs/r20";
  const cwd = join("/", "home");
  const recipe = recipeOf([], parseFlags(line.split(" ")), cwd);
  assert.deepEqual(recipe, {
    ...DEFAULT_RECIPE,
    model: join(cwd, "resnet20.onnx"),
    calibration: join(cwd, "train_x.npy"),
    evaluate: join(cwd, "test_x.npy"),
    labels: join(cwd, "test_y.npy"),
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
    weightBits: 4,
    activationBits: 4,
    augment: { ...DEFAULT_RECIPE.augment, flip: false },
    out: join(cwd, "runs/r20"),
  });
});

Deno.test("parseFlags() takes negative numbers, and switches in any place", () => {
  const { values, json, debug } = parseFlags(["--json", "--mean", "-1,.5,2e-1", "--debug"]);
  assert.deepEqual(values.get("mean"), [-1, 0.5, 0.2]);
  assert.deepEqual([json, debug], [true, true]);
});

Deno.test("parseFlags() reads overrides of layers and operators, and lists of names", () => {
  const args = ["--override", "/a=b/*=weightBits:3,quantize:true", "--skip-layers=a,b*"];
  const { values } = parseFlags([...args, "--override", "operators:Gemm=weightObserver:minmax"]);
  assert.deepEqual(values.get("overrides"), [
    { layers: "/a=b/*", weightBits: 3, quantize: true },
    { operators: "Gemm", weightObserver: "minmax" },
  ]);
  assert.deepEqual(values.get("skipLayers"), ["a", "b*"]);
});

Deno.test("flags: a wrong flag or value is one line that names it", () => {
  const cases: readonly (readonly [args: readonly string[], message: string | RegExp])[] = [
    [["--modle", "m"], "--modle: unknown flag, did you mean --model?"],
    [["--weigth-bits", "4"], "--weigth-bits: unknown flag, did you mean --weight-bits?"],
    [["--frobnicate"], "--frobnicate: unknown flag, --help shows them all"],
    [["m.onnx"], '"m.onnx": expected a flag such as --model FILE'],
    [["-m", "x"], '"-m": expected a flag such as --model FILE'],
    [["--model"], "--model: needs a value, --model FILE"],
    [["--out", "--json"], "--out: needs a value, --out FOLDER"],
    [["--seed", "1", "--seed=1"], "--seed: given twice"],
    [["--json=yes"], "--json: takes no value"],
    [["--weight-bits", "9"], "--weight-bits: found 9, expected an integer from 2 to 8"],
    [["--weight-bits", "four"], '--weight-bits: found "four", expected an integer from 2 to 8'],
    [["--weight-bits", ""], '--weight-bits: found "", expected an integer from 2 to 8'],
    [["--seed", "0x10"], '--seed: found "0x10", expected an integer from 0 to 4294967295'],
    [["--held-out", "NaN"], '--held-out: found "NaN", expected a number from 0 to 0.5'],
    [["--mean", "1,,2"], '--mean: found "1,,2", expected a list of numbers'],
    [["--augment-flip", "1"], '--augment-flip: found "1", expected true or false'],
    [["--override", "a"], /^--override: "a": expected for example conv1=weightBits:8,/],
    [["--override", "a=b"], '--override: "a=b": found "b", expected KEY:VALUE'],
    [
      ["--override", "a=weightBits:9"],
      '--override: "a=weightBits:9": weightBits: found 9, expected an integer from 2 to 8',
    ],
    [
      ["--override", "a=wieghtBits:8"],
      '--override: "a=wieghtBits:8": wieghtBits: unknown key, did you mean "weightBits"?',
    ],
    [
      ["--override", "a=seed:8,seed:9"],
      '--override: "a=seed:8,seed:9": seed is given twice',
    ],
    [
      ["--override", "operators:Con=weightBits:8"],
      /"operators:Con=weightBits:8": operators: found "Con", expected one of Conv, Depthwise/,
    ],
    [
      ["--override", "a=quantize:false,weightBits:8"],
      /found weightBits beside "quantize": false, expected one of them$/,
    ],
    [["--skip-operators", "Con"], /^--skip-operators: found "Con", expected a list of Conv, /],
    [["--skip-layers", "a", "--skip-layers", "b"], "--skip-layers: given twice"],
    [["--labels", "y"], "--labels: labels were given but nothing to evaluate"],
  ];
  for (const [args, message] of cases) {
    assert.throws(() => recipeOf([], parseFlags(args), "/"), (error) => {
      assert.ok(error instanceof UsageError, `${args}`);
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      return true;
    });
  }
});

Deno.test("recipeOf() blames the file for a file's mistake", () => {
  const layer = (value: unknown) => [{ value, path: "r.json" }];
  const none = parseFlags([]);
  assert.throws(() => recipeOf(layer({ bits: 4 }), none, "/"), /^FormatError: r\.json: bits: /);
  assert.throws(() => recipeOf(layer({ std: [0] }), none, "/"), /^FormatError: r\.json: std: /);
  assert.throws(() => recipeOf(layer([]), none, "/"), /^FormatError: r\.json: found \[\]/);
  // What is incomplete in the file may be completed by a flag.
  const flags = parseFlags(["--evaluate", "/x"]);
  assert.equal(recipeOf(layer({ labels: "/y" }), flags, "/").labels, "/y");
});

Deno.test("recipeOf() lets a stronger layer override only the keys it has", () => {
  const layers = [
    { value: { mean: [0.1], augment: { shift: 2, flip: false } }, path: "example" },
    { value: { augment: { copies: 3 }, seed: 4 }, path: "r.json" },
  ];
  const { mean, seed, augment } = recipeOf(layers, parseFlags([]), "/");
  assert.deepEqual({ mean, seed, augment }, {
    mean: [0.1],
    seed: 4,
    augment: { copies: 3, shift: 2, flip: false },
  });
});
