// The keys of a recipe as `--help` and errors name them, read from its schema.
import { z } from "zod";

/** What `--help` and an error say about one key of the recipe. */
export interface RecipeField {
  /** `weightBits`, or `augment.copies` for a key inside another. */
  readonly key: string;
  readonly about: string;
  readonly default: unknown;
  /** For example `an integer from 2 to 8`. */
  readonly expected: string;
  /** How a word on the command line becomes the value. */
  readonly kind: "text" | "texts" | "number" | "numbers" | "boolean";
  readonly nullable: boolean;
}

/**
 * Describes the keys of a schema.
 *
 * @param schema of an object
 * @returns every key, in the order of the schema
 */
export function recipeFields(schema: z.ZodType): RecipeField[] {
  return fieldsOf(z.toJSONSchema(schema) as JsonSchema, "");
}

/** The part of JSON Schema that zod writes for the recipe. */
interface JsonSchema {
  readonly type?: string | readonly string[];
  readonly anyOf?: readonly JsonSchema[];
  readonly enum?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly items?: JsonSchema;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly default?: unknown;
  readonly description?: string;
}

function fieldsOf(schema: JsonSchema, prefix: string): RecipeField[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    const key = prefix + name;
    if (property.properties !== undefined) return fieldsOf(property, `${key}.`);
    const inner = property.anyOf?.find(({ type }) => type !== "null") ?? property;
    const types = [inner.type ?? []].flat();
    const nullable = property.anyOf !== undefined || types.includes("null");
    const kind = types.includes("array")
      ? inner.items?.type === "string" ? "texts" : "numbers"
      : types.includes("boolean")
      ? "boolean"
      : types.includes("string")
      ? "text"
      : "number";
    const expected = expectedOf(inner, types) + (nullable ? " or null" : "");
    return [{
      key,
      about: property.description ?? "",
      default: property.default,
      expected,
      kind,
      nullable,
    }];
  });
}

function expectedOf(schema: JsonSchema, types: readonly string[]): string {
  if (schema.enum !== undefined) return `one of ${schema.enum.join(", ")}`;
  if (types.includes("array")) {
    return schema.items?.type === "string" ? "a list of texts" : "a list of numbers";
  }
  if (types.includes("boolean")) return "true or false";
  if (types.includes("string")) return "a text";
  const noun = types.includes("integer") ? "an integer" : "a number";
  const { minimum, maximum, exclusiveMinimum } = schema;
  if (exclusiveMinimum !== undefined) return `${noun} above ${exclusiveMinimum}`;
  if (maximum === undefined || maximum === Number.MAX_SAFE_INTEGER) {
    return minimum === undefined ? noun : `${noun} of at least ${minimum}`;
  }
  return `${noun} from ${minimum} to ${maximum}`;
}
