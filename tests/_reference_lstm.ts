// LSTM in float64, from the equations of the ONNX operator.

/** Sizes of one direction. */
export interface LstmSizes {
  readonly samples: number;
  readonly steps: number;
  readonly inputs: number;
  readonly hidden: number;
  readonly reverse: boolean;
}

/** What changes a state before it is multiplied: its quantizer. */
export type StateMap = (state: readonly number[]) => readonly number[];

/**
 * One direction over sequences.
 *
 * @param sizes of it
 * @param x element of the input by sample, step and feature
 * @param w element of W by row and feature
 * @param r element of R by row and unit
 * @param b the sum of both biases by row
 * @param map of the states
 * @returns y by sample, step and unit, and the cells
 */
export function lstmReference(
  { samples, steps, inputs, hidden, reverse }: LstmSizes,
  x: (n: number, t: number, i: number) => number,
  w: (row: number, i: number) => number,
  r: (row: number, k: number) => number,
  b: (row: number) => number,
  map: StateMap = (state) => state,
): { y: number[][][]; cells: number[][][] } {
  const sigmoid = (value: number) => 1 / (1 + Math.exp(-value));
  const y: number[][][] = [], cells: number[][][] = [];
  for (let n = 0; n < samples; n++) {
    let h: readonly number[] = new Array<number>(hidden).fill(0);
    let c: readonly number[] = h;
    y.push([]);
    cells.push([]);
    for (let s = 0; s < steps; s++) {
      const t = reverse ? steps - 1 - s : s;
      const before = map(h);
      const gate = (g: number, j: number) => {
        const row = g * hidden + j;
        let sum = b(row);
        for (let i = 0; i < inputs; i++) sum += w(row, i) * x(n, t, i);
        for (let k = 0; k < hidden; k++) sum += r(row, k) * before[k]!;
        return sum;
      };
      const units = Array.from({ length: hidden }, (_, j) => j);
      const last = c;
      c = units.map((j) =>
        sigmoid(gate(2, j)) * last[j]! + sigmoid(gate(0, j)) * Math.tanh(gate(3, j))
      );
      h = units.map((j) => sigmoid(gate(1, j)) * Math.tanh(c[j]!));
      y[n]![t] = [...h];
      cells[n]![t] = [...c];
    }
  }
  return { y, cells };
}
