// Activation functions as WGSL expressions on vec4f, for use inside other kernels, with their derivatives.
// Names and defaults are those of the ONNX operators (silu is x * sigmoid(x)).

/** An activation function with its constants. */
export type Activation =
  | { readonly kind: "relu" | "sigmoid" | "hardSwish" | "silu" | "tanh" | "gelu" }
  | { readonly kind: "clip"; readonly min: number; readonly max: number }
  | { readonly kind: "leakyRelu"; readonly alpha: number }
  | { readonly kind: "hardSigmoid"; readonly alpha: number; readonly beta: number };

/** A float32 literal that WGSL reads as the same number. */
export function literal(value: number): string {
  if (value === Infinity) return "3.4028234663852886e38";
  if (value === -Infinity) return "-3.4028234663852886e38";
  const text = String(Math.fround(value));
  return /[.e]/.test(text) ? text : `${text}.0`;
}

/**
 * The activation of a value.
 *
 * @param activation which one
 * @param x a WGSL identifier or expression of type vec4f; it may be repeated
 * @returns an expression of type vec4f
 */
export function activationForward(activation: Activation, x: string): string {
  switch (activation.kind) {
    case "relu":
      return `max(${x}, vec4f(0.0))`;
    case "clip":
      return `clamp(${x}, vec4f(${literal(activation.min)}), vec4f(${literal(activation.max)}))`;
    case "leakyRelu":
      return `select(${x} * ${literal(activation.alpha)}, ${x}, ${x} >= vec4f(0.0))`;
    case "sigmoid":
      return sigmoid(x);
    case "hardSigmoid":
      return `clamp(${x} * ${literal(activation.alpha)} + ${
        literal(activation.beta)
      }, vec4f(0.0), vec4f(1.0))`;
    case "hardSwish":
      return `(${x} * clamp(${x} * ${literal(1 / 6)} + 0.5, vec4f(0.0), vec4f(1.0)))`;
    case "silu":
      return `(${x} * ${sigmoid(x)})`;
    case "tanh":
      return tanh(x);
    case "gelu":
      return `(${x} * ${normalDistribution(x)})`;
  }
}

/**
 * The derivative of an activation.
 *
 * @param activation which one
 * @param x the value before the activation: a WGSL identifier of type vec4f
 * @returns an expression of type vec4f
 */
export function activationDerivative(activation: Activation, x: string): string {
  const step = (condition: string) => `select(vec4f(0.0), vec4f(1.0), ${condition})`;
  switch (activation.kind) {
    case "relu":
      return step(`${x} > vec4f(0.0)`);
    case "clip": {
      const inside = `(${x} > vec4f(${literal(activation.min)})) & (${x} < vec4f(${
        literal(activation.max)
      }))`;
      return step(inside);
    }
    case "leakyRelu":
      return `select(vec4f(${literal(activation.alpha)}), vec4f(1.0), ${x} >= vec4f(0.0))`;
    case "sigmoid":
      return `(${sigmoid(x)} * (1.0 - ${sigmoid(x)}))`;
    case "hardSigmoid": {
      const line = `(${x} * ${literal(activation.alpha)} + ${literal(activation.beta)})`;
      const inside = `(${line} > vec4f(0.0)) & (${line} < vec4f(1.0))`;
      return `select(vec4f(0.0), vec4f(${literal(activation.alpha)}), ${inside})`;
    }
    case "hardSwish": {
      const middle = `(${x} * ${literal(1 / 3)} + 0.5)`;
      const above = `select(${middle}, vec4f(1.0), ${x} >= vec4f(3.0))`;
      return `select(${above}, vec4f(0.0), ${x} <= vec4f(-3.0))`;
    }
    case "silu":
      return `(${sigmoid(x)} * (1.0 + ${x} * (1.0 - ${sigmoid(x)})))`;
    case "tanh":
      return `(1.0 - ${tanh(x)} * ${tanh(x)})`;
    case "gelu":
      return `(${normalDistribution(x)} + ${x} * ${
        literal(1 / Math.sqrt(2 * Math.PI))
      } * exp(-0.5 * ${x} * ${x}))`;
  }
}

/** Whether the activation maps 0 to 0, so that padded channels stay zero by themselves. */
export function activationKeepsZero(activation: Activation): boolean {
  switch (activation.kind) {
    case "sigmoid":
      return false;
    case "hardSigmoid":
      return activation.beta <= 0;
    case "clip":
      return activation.min <= 0 && activation.max >= 0;
    default:
      return true;
  }
}

function sigmoid(x: string): string {
  return `(1.0 / (1.0 + exp(-${x})))`;
}

/** Clamped, because exp inside some drivers' tanh overflows; tanh(10) is 1 in float32. */
function tanh(x: string): string {
  return `tanh(clamp(${x}, vec4f(-10.0), vec4f(10.0)))`;
}

/** Standard normal distribution function, by Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7. */
function normalDistribution(x: string): string {
  const t = `(1.0 / (1.0 + ${literal(0.3275911 / Math.SQRT2)} * abs(${x})))`;
  const polynomial = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592]
    .map(literal)
    .reduce((sum, coefficient) => sum === "" ? coefficient : `(${sum} * ${t} + ${coefficient})`);
  const erf = `(1.0 - ${polynomial} * ${t} * exp(-0.5 * ${x} * ${x}))`;
  return `(0.5 + 0.5 * sign(${x}) * ${erf})`;
}
