// The command line of `deno task compare`: the flags of `deno task distill`, and rows, columns and seeds of the table.
import { nearestName } from "../core/nearest_name.ts";
import { checkRecipePart, RECIPE_FIELDS } from "../distill/recipe.ts";
import { bitsName, VERSION } from "../distill/report.ts";
import {
  type BitWidths,
  type ComparisonRow,
  repeated,
  rowProblem,
} from "../run/comparison_rows.ts";
import {
  type CommandFlags,
  EXIT_CODES,
  flagLines,
  type Flags,
  parseFlags,
  UsageError,
  valueOf,
} from "./flags.ts";

const DEFAULTS = {
  methods: "ptq, ptq+weightRounding=gptq, blockwise",
  bits: "8/8,4/8,4/4,3/3,2/4,2/2",
  seeds: "0,1,2",
};

const COMMAND: CommandFlags = {
  own: {
    methods: {
      value: "ROW,ROW,..",
      about: `rows: a method, then +key=value of the recipe (default "${DEFAULTS.methods}")`,
    },
    rows: {
      value: "FILE",
      about: 'rows with names: [{"name": "...", "recipe": {...}}, ..] (default none)',
    },
    bits: {
      value: "W/A,W/A,..",
      about:
        `columns: bits of weights/activations, 4/32 = float activations (default ${DEFAULTS.bits})`,
    },
    seeds: { value: "N,N,..", about: `seeds of each cell (default ${DEFAULTS.seeds})` },
    out: {
      value: "FOLDER",
      about: "results.json, table.json, table.md, table.svg (default runs/compare)",
    },
  },
  instead: {
    method: "methods",
    weightBits: "bits",
    activationBits: "bits",
    seed: "seeds",
  },
  without: ["dry-run"],
};

/** Flags as given. */
export interface CompareFlags extends Flags {
  /** File of the rows; it takes the place of `methods`. */
  readonly rowsFile: string | undefined;
  readonly methods: readonly ComparisonRow[];
  readonly bits: readonly BitWidths[];
  readonly seeds: readonly number[];
  readonly out: string;
}

/**
 * Reads the command line.
 *
 * @param args words after the program's name
 * @returns the flags
 * @throws UsageError for the first wrong flag, row, column or seed
 */
export function parseCompareFlags(args: readonly string[]): CompareFlags {
  const flags = parseFlags(args, COMMAND);
  const { own } = flags;
  const word = (name: keyof typeof DEFAULTS) => own.get(name) ?? DEFAULTS[name];
  if (own.has("rows") && own.has("methods")) {
    throw new UsageError("--rows: given with --methods, expected one of the two");
  }
  return {
    ...flags,
    rowsFile: own.get("rows"),
    methods: listOf("--methods", word("methods"), rowOf, ({ name }) => name),
    bits: listOf("--bits", word("bits"), bitsOf, bitsName),
    seeds: listOf("--seeds", word("seeds"), seedOf, String),
    out: own.get("out") ?? "runs/compare",
  };
}

/** @returns the text of `--help` */
export function compareHelp(): string {
  return [
    `stilla ${VERSION}: compares methods, bits and seeds on one network, in one table.`,
    "",
    "usage: deno task compare [flags]",
    "Called again, it makes only the students that are not in the folder yet.",
    "Without --model: the built-in MNIST example.",
    "",
    ...flagLines(COMMAND),
    "",
    ...EXIT_CODES,
    "A student that fails is shown as such, the others are made; the first failure decides the code.",
    "",
  ].join("\n");
}

function listOf<T>(
  flag: string,
  words: string,
  parse: (word: string) => T,
  nameOf: (value: T) => string,
): T[] {
  const values = words.split(",").map((word) => parse(word.trim()));
  const twice = repeated(values.map(nameOf));
  if (twice === undefined) return values;
  throw new UsageError(`${flag}: ${JSON.stringify(twice)} stands twice`);
}

/** `ptq+weightRounding=gptq`, with `a name: ` before it where it is to have one. */
function rowOf(word: string): ComparisonRow {
  const [, name, terms = ""] = /^(?:([^:]+):)?([^:]*)$/.exec(word) ?? [];
  const place = `--methods: ${JSON.stringify(word)}`;
  const recipe: Record<string, unknown> = {};
  for (const [index, term] of terms.split("+").entries()) {
    const [key, value] = splitTerm(term.trim(), index === 0);
    if (value === undefined) {
      throw new UsageError(`${place}: found ${JSON.stringify(key)}, expected key=value`);
    }
    const field = RECIPE_FIELDS.find((known) => known.key === key);
    if (field === undefined) {
      const near = nearestName(key, RECIPE_FIELDS.map((known) => known.key));
      const hint = near === undefined ? "" : `, did you mean "${near}"?`;
      throw new UsageError(`${place}: ${key}: unknown key${hint}`);
    }
    const [outer, inner] = key.split(".") as [string, string | undefined];
    if (inner === undefined ? outer in recipe : inner in Object(recipe[outer])) {
      throw new UsageError(`${place}: ${key}: stands twice`);
    }
    const parsed = valueOf(field, `${place}: ${key}`, value);
    recipe[outer] = inner === undefined ? parsed : { ...Object(recipe[outer]), [inner]: parsed };
  }
  const problem = rowProblem(recipe);
  if (problem === undefined) return { name: (name ?? terms).trim(), recipe };
  throw new UsageError(`${place}: ${problem.key}: ${problem.detail}`);
}

/** The first term may be a bare method. */
function splitTerm(term: string, first: boolean): [key: string, value: string | undefined] {
  const at = term.indexOf("=");
  if (at < 0) return first ? ["method", term] : [term, undefined];
  return [term.slice(0, at).trim(), term.slice(at + 1).trim()];
}

function bitsOf(word: string): BitWidths {
  const [, weightBits, activationBits] = /^(\d+)\/(\d+)$/.exec(word) ?? [];
  const bits = {
    weightBits: Number(weightBits),
    activationBits: activationBits === "32" ? null : Number(activationBits),
  };
  if (checkRecipePart(bits) === undefined) return bits;
  const found = JSON.stringify(word);
  throw new UsageError(
    `--bits: found ${found}, expected W/A such as 4/8, both from 2 to 8, or 4/32`,
  );
}

function seedOf(word: string): number {
  const seed = /^\d+$/.test(word) ? Number(word) : NaN;
  if (checkRecipePart({ seed }) === undefined) return seed;
  const { expected } = RECIPE_FIELDS.find(({ key }) => key === "seed")!;
  throw new UsageError(`--seeds: found ${JSON.stringify(word)}, expected ${expected}`);
}
