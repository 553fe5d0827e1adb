// Stored rows in host memory, for sets that do not fit on the GPU. They come and go as raw words.

/** Bytes of one allocation at most: engines limit the length of an array. */
const BLOCK_BYTES = 1 << 28;

/** Rows of equally many words. */
export class HostRows {
  readonly #rowWords: number;
  readonly #blockRows: number;
  readonly #blocks: Uint32Array<ArrayBuffer>[] = [];

  /**
   * @param rows how many
   * @param rowWords words of one
   */
  constructor(rows: number, rowWords: number) {
    this.#rowWords = rowWords;
    this.#blockRows = Math.max(1, Math.floor(BLOCK_BYTES / (4 * rowWords)));
    for (let first = 0; first < rows; first += this.#blockRows) {
      const size = Math.min(this.#blockRows, rows - first);
      this.#blocks.push(new Uint32Array(size * rowWords));
    }
  }

  /**
   * Overwrites rows.
   *
   * @param first row number
   * @param words whole rows
   */
  write(first: number, words: Uint32Array<ArrayBuffer>): void {
    const size = this.#rowWords;
    for (let i = 0; i * size < words.length; i++) {
      this.#row(first + i).set(words.subarray(i * size, (i + 1) * size));
    }
  }

  /**
   * Collects rows.
   *
   * @param rows row numbers
   * @returns their words, one row after another
   */
  read(rows: Uint32Array<ArrayBuffer>): Uint32Array<ArrayBuffer> {
    const words = new Uint32Array(rows.length * this.#rowWords);
    rows.forEach((row, i) => words.set(this.#row(row), i * this.#rowWords));
    return words;
  }

  #row(row: number): Uint32Array<ArrayBuffer> {
    const first = (row % this.#blockRows) * this.#rowWords;
    return this.#blocks[Math.floor(row / this.#blockRows)]!.subarray(first, first + this.#rowWords);
  }
}
