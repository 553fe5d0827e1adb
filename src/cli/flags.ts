// The command line of `deno task distill`: one flag for every key of the recipe, and a few of its own.
import { isAbsolute, resolve } from "node:path";
import { checkRecipe, checkRecipePart, type Recipe, RECIPE_FIELDS } from "../distill/recipe.ts";
import type { RecipeField } from "../distill/recipe_fields.ts";
import { VERSION } from "../distill/report.ts";
import { PATH_KEYS } from "../run/run_inputs.ts";
import { type Override, overrideProblem } from "../distill/overrides.ts";
import { nearestName } from "../core/nearest_name.ts";
import { FormatError } from "../core/errors.ts";

/** A wrong flag or value: one line that names it. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Flags as given. */
export interface Flags {
  readonly help: boolean;
  readonly version: boolean;
  readonly json: boolean;
  /** Plan the run only. */
  readonly dryRun: boolean;
  /** Show stack traces of errors. */
  readonly debug: boolean;
  /** Recipe file that the flags override. */
  readonly recipe: string | undefined;
  /** Values of the command's own flags. */
  readonly own: ReadonlyMap<string, string>;
  /** Values by key of the recipe, e.g. `augment.copies`. */
  readonly values: ReadonlyMap<string, unknown>;
}

/** What a command takes beside the flags that all share. */
export interface CommandFlags {
  /** Its own flags, which may take the place of a key's: what their value is called in `--help`, and what they do. */
  readonly own?: Readonly<Record<string, { readonly value: string; readonly about: string }>>;
  /** Keys of the recipe that it does not take, and the flag to use instead. */
  readonly instead?: Readonly<Record<string, string>>;
  /** Switches that it does not take. */
  readonly without?: readonly string[];
}

const RECIPE_FLAG = {
  recipe: {
    value: "FILE",
    about: "recipe.json to repeat; the other flags override it (default none)",
  },
};

const SWITCHES: Readonly<Record<string, string>> = {
  help: "show this and stop",
  version: "show the version and stop",
  json: "print the report as JSON on standard output",
  "dry-run": "print what a run would do, its memory and time, and make nothing",
  debug: "show the stack trace of an error",
};

const FIELDS_BY_FLAG: ReadonlyMap<string, RecipeField> = new Map(
  RECIPE_FIELDS.map((field) => [flagOf(field.key), field]),
);

/**
 * Reads the command line. Values are checked for their kind here and for their range by {@linkcode recipeOf}.
 *
 * @param args words after the program's name
 * @param command what the command takes beside the flags that all share
 * @returns the flags
 * @throws UsageError for an unknown flag, a missing value or a value of the wrong kind
 */
export function parseFlags(
  args: readonly string[],
  { own: more = {}, instead = {}, without }: CommandFlags = {},
): Flags {
  const ownFlags = { ...RECIPE_FLAG, ...more };
  const known = switchesBut(without);
  const switches = new Set<string>();
  const values = new Map<string, unknown>();
  const own = new Map<string, string>();
  for (let i = 0; i < args.length; i++) {
    const [word, inline] = splitFlag(args[i]!);
    const flag = word === "h" ? "help" : word;
    if (Object.hasOwn(known, flag)) {
      if (inline !== undefined) throw new UsageError(`--${flag}: takes no value`);
      switches.add(flag);
      continue;
    }
    const ownFlag = Object.hasOwn(ownFlags, flag) ? ownFlags[flag as keyof typeof ownFlags] : null;
    const field = ownFlag ? undefined : FIELDS_BY_FLAG.get(flag);
    if (field !== undefined && Object.hasOwn(instead, field.key)) {
      throw new UsageError(`--${flag}: not taken here, use --${instead[field.key]}`);
    }
    const wanted = ownFlag?.value ?? (field && placeholder(field));
    if (wanted === undefined) throw unknownFlag(flag, { ...ownFlags, ...known });
    const value = inline ?? args[++i];
    if (value === undefined || (inline === undefined && value.startsWith("--"))) {
      throw new UsageError(`--${flag}: needs a value, --${flag} ${wanted}`);
    }
    if (field?.kind === "overrides") {
      // The only flag that may be repeated.
      const before = values.get(field.key) as readonly Override[] | undefined ?? [];
      values.set(field.key, [...before, overrideOf(flag, value)]);
      continue;
    }
    const given = field === undefined ? own.has(flag) : values.has(field.key);
    if (given) throw new UsageError(`--${flag}: given twice`);
    if (field === undefined) own.set(flag, value);
    else values.set(field.key, valueOf(field, `--${flag}`, value));
  }
  return {
    help: switches.has("help"),
    version: switches.has("version"),
    json: switches.has("json"),
    dryRun: switches.has("dry-run"),
    debug: switches.has("debug"),
    recipe: own.get("recipe"),
    own,
    values,
  };
}

/**
 * The complete recipe: defaults, overridden by the example's recipe or a recipe file, overridden by flags.
 *
 * @param layers recipes that the flags override, the strongest last
 * @param layers.value what was read
 * @param layers.path where from
 * @param flags what the command line says
 * @param cwd folder that relative paths start from; the recipe returned has absolute ones, so that it works anywhere
 * @returns the recipe
 * @throws UsageError when a flag is the cause, FormatError when a file is
 */
export function recipeOf(
  layers: readonly { readonly value: unknown; readonly path: string }[],
  flags: Flags,
  cwd: string,
): Recipe {
  const merged: Record<string, unknown> = {};
  const sources = new Map<string, string>(); // which layer a key comes from
  for (const { value, path } of layers) {
    const problem = checkRecipePart(value);
    if (problem !== undefined) throw new FormatError(path, problem.key, problem.detail);
    // It was checked to be an object. Only the keys it really has count, not its defaults.
    for (const [key, inner] of Object.entries(value as Record<string, unknown>)) {
      merged[key] = isRecord(inner) && isRecord(merged[key]) ? { ...merged[key], ...inner } : inner;
      sources.set(key, path);
    }
  }
  for (const [key, value] of flags.values) {
    if (key === "overrides") {
      // Those of the command line are added to the file's: the last ones win.
      merged[key] = [...merged[key] as [] ?? [], ...value as []];
      continue;
    }
    const [outer, inner] = key.split(".") as [string, string | undefined];
    const before = merged[outer];
    merged[outer] = inner === undefined
      ? value
      : { ...isRecord(before) ? before : {}, [inner]: value };
  }
  for (const key of PATH_KEYS) {
    const path = merged[key];
    const isName = key === "model" && path === "mnist";
    if (typeof path === "string" && path !== "" && !isName && !isAbsolute(path)) {
      merged[key] = resolve(cwd, path);
    }
  }
  const checked = checkRecipe(merged);
  if ("recipe" in checked) return checked.recipe;
  const { key, detail } = checked.problem;
  const outer = key.split(/[.[]/)[0]!;
  const source = flags.values.has(key) ? undefined : sources.get(outer);
  if (source !== undefined) throw new FormatError(source, key, detail);
  throw new UsageError(`--${flagOf(key.replace(/\[.*/, ""))}: ${detail}`);
}

/** @returns the text of `--help`: every flag with its default */
export function helpText(): string {
  return [
    `stilla ${VERSION}: distils a trained fp32 network into an int8 one (2 to 8 bits).`,
    "",
    "usage: deno task distill [flags]",
    "Without --model: the built-in MNIST example, every method at W8A8 and W4A4, in one table.",
    "",
    ...flagLines(),
    "",
    ...EXIT_CODES,
    "",
  ].join("\n");
}

/** The last lines of `--help`. */
export const EXIT_CODES: readonly string[] = [
  "exit codes: 0 done, 2 bad input, 3 no usable GPU or driver, 4 numbers diverged,",
  "5 out of memory or disk, 130/143 stopped by a signal",
];

/**
 * The flags' lines of `--help`.
 *
 * @param command what the command takes beside the flags that all share
 * @returns a line each
 */
export function flagLines({ own = {}, instead = {}, without }: CommandFlags = {}): string[] {
  const shared = RECIPE_FIELDS.filter(({ key }) =>
    !Object.hasOwn(instead, key) && !Object.hasOwn(own, flagOf(key))
  );
  const ownLine = ([name, { value, about }]: [string, { value: string; about: string }]) => [
    `--${name} ${value}`,
    about,
  ];
  const rows = [
    ...Object.entries(own).map(ownLine),
    ...shared.map((field) => [
      `--${flagOf(field.key)} ${placeholder(field)}`,
      `${field.about}${choices(field)} (default ${shownDefault(field)})`,
    ]),
    ...Object.entries(RECIPE_FLAG).map(ownLine),
    ...Object.entries(switchesBut(without)).map(([name, about]) => {
      return [`--${name}`, `${about} (default off)`];
    }),
  ] as [string, string][];
  const width = Math.max(...rows.map(([flag]) => flag.length));
  return rows.map(([flag, about]) => `  ${flag.padEnd(width)}  ${about}`);
}

/**
 * @param key key of the recipe
 * @returns its flag without the dashes: `augment.copies` is `augment-copies`, `weightBits` is `weight-bits`; one flag
 * gives one override
 */
export function flagOf(key: string): string {
  if (key === "overrides") return "override";
  return key.replace(".", "-").replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function switchesBut(without: readonly string[] = []): Readonly<Record<string, string>> {
  return Object.fromEntries(Object.entries(SWITCHES).filter(([name]) => !without.includes(name)));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function splitFlag(word: string): [flag: string, inline: string | undefined] {
  const [, flag, inline] = /^--?([a-zA-Z][^=]*)(?:=(.*))?$/s.exec(word) ?? [];
  if (flag === undefined || (!word.startsWith("--") && word !== "-h")) {
    throw new UsageError(`${JSON.stringify(word)}: expected a flag such as --model FILE`);
  }
  return [flag, inline];
}

function unknownFlag(flag: string, own: object): UsageError {
  const known = [...FIELDS_BY_FLAG.keys(), ...Object.keys(own)];
  const near = nearestName(flag, known);
  const hint = near === undefined ? "--help shows them all" : `did you mean --${near}?`;
  return new UsageError(`--${flag}: unknown flag, ${hint}`);
}

/**
 * A word as a value of the recipe; its range is checked later.
 *
 * @param field which key
 * @param place where the word stands, for the error
 * @param word the word
 * @returns the value
 * @throws UsageError when the word is of the wrong kind
 */
export function valueOf(field: RecipeField, place: string, word: string): unknown {
  if (field.nullable && word === "null") return null;
  if (field.kind === "text") return word;
  if (field.kind === "texts") return word === "" ? [] : word.split(",");
  const wrong = () =>
    new UsageError(`${place}: found ${JSON.stringify(word)}, expected ${field.expected}`);
  if (field.kind === "boolean") {
    if (word !== "true" && word !== "false") throw wrong();
    return word === "true";
  }
  const numbers = (field.kind === "numbers" ? word.split(",") : [word]).map((part) =>
    // Number("") is 0 and Number("0x10") is 16; neither is what a user means.
    /^\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*$/i.test(part) ? Number(part) : NaN
  );
  if (!numbers.every(Number.isFinite)) throw wrong();
  return field.kind === "numbers" ? numbers : numbers[0];
}

/** `conv1=weightBits:8,activationBits:8`, or `operators:Gemm=quantize:false`. */
function overrideOf(flag: string, word: string): Override {
  const wrong = (detail: string) => new UsageError(`--${flag}: ${JSON.stringify(word)}: ${detail}`);
  const [, prefix, name = "", list = ""] = /^(operators:)?(.+)=([^=]+)$/s.exec(word) ?? [];
  const example = "conv1=weightBits:8,activationBits:8 or operators:Gemm=quantize:false";
  if (name === "") throw wrong(`expected for example ${example}`);
  const subject: [string, unknown] = [prefix === undefined ? "layers" : "operators", name];
  const settings = list.split(",").map((setting): [string, unknown] => {
    const [, key, value] = /^([^:]+):(.+)$/s.exec(setting) ?? [];
    if (key === undefined || value === undefined) {
      throw wrong(`found ${JSON.stringify(setting)}, expected KEY:VALUE`);
    }
    if (value === "true" || value === "false") return [key, value === "true"];
    if (value === "null") return [key, null];
    return [key, /^\d+$/.test(value) ? Number(value) : value];
  });
  const entries = [subject, ...settings];
  const twice = entries.find(([key], i) => entries.findIndex(([other]) => other === key) < i);
  if (twice !== undefined) throw wrong(`${twice[0]} is given twice`);
  const override = Object.fromEntries(entries);
  const problem = checkRecipePart({ overrides: [override] });
  if (problem !== undefined) {
    throw wrong(`${problem.key.replace("overrides[0].", "")}: ${problem.detail}`);
  }
  // The schema has accepted it.
  const detail = overrideProblem(override as Override);
  if (detail !== undefined) throw wrong(detail);
  return override as Override;
}

function placeholder({ key, kind }: RecipeField): string {
  if (key === "out") return "FOLDER";
  if (PATH_KEYS.includes(key)) return "FILE";
  return {
    text: "NAME",
    texts: "NAME,NAME,..",
    number: "N",
    numbers: "N,N,..",
    boolean: "BOOL",
    overrides: "LAYERS=KEY:VALUE,..",
  }[kind];
}

function choices({ expected, kind }: RecipeField): string {
  return kind === "text" && expected.startsWith("one of ")
    ? `: ${expected.slice("one of ".length)}`
    : "";
}

function shownDefault(field: RecipeField): string {
  const value = field.default;
  if (Array.isArray(value)) return value.length === 0 ? "none" : value.join(",");
  if (field.key === "out") return "runs/MODEL-METHOD-wBaB";
  return value === null ? (PATH_KEYS.includes(field.key) ? "none" : "null") : String(value);
}
