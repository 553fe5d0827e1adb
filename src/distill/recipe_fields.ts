// The keys of a recipe as `--help`, the command line and error messages see them: read from its JSON Schema.

/** What `--help` and an error say about one key of the recipe. */
export interface RecipeField {
  /** `weightBits`, or `augment.copies` for a key inside another. */
  readonly key: string;
  readonly about: string;
  readonly default: unknown;
  /** For example `an integer from 2 to 8`. */
  readonly expected: string;
  /** How a word on the command line becomes the value. */
  readonly kind: "text" | "texts" | "number" | "numbers" | "boolean" | "overrides";
  readonly nullable: boolean;
}

/** The part of JSON Schema that zod writes for the recipe. */
export interface JsonSchema {
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

/**
 * The keys of a schema.
 *
 * @param schema of a record
 * @param prefix put before each key
 * @returns one field for each key, those of records inside as `outer.inner`
 */
export function fieldsOf(schema: JsonSchema, prefix: string): RecipeField[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    const key = prefix + name;
    if (property.properties !== undefined) return fieldsOf(property, `${key}.`);
    const inner = property.anyOf?.find(({ type }) => type !== "null") ?? property;
    const types = [inner.type ?? []].flat();
    const nullable = property.anyOf !== undefined || types.includes("null");
    const kind = types.includes("array")
      ? listKind(inner)
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

function listKind({ items }: JsonSchema): RecipeField["kind"] {
  if (items?.properties !== undefined) return "overrides";
  return items?.type === "string" ? "texts" : "numbers";
}

function expectedOf(schema: JsonSchema, types: readonly string[]): string {
  if (schema.enum !== undefined) return `one of ${schema.enum.join(", ")}`;
  if (types.includes("array")) {
    const { items } = schema;
    if (items?.enum !== undefined) return `a list of ${items.enum.join(", ")}`;
    return `a list of ${listKind(schema)}`;
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
