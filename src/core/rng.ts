// Seeded random numbers: xoshiro128** (Blackman, Vigna 2018) seeded by splitmix32. The state is four 32-bit words, so
// a run can store and resume it. Nothing in stilla draws from Math.random.

/** A seeded generator; the same seed gives the same numbers on every machine. */
export class Rng {
  #state: Uint32Array<ArrayBuffer>;

  /** @param seed any integer; only its low 32 bits count */
  constructor(seed: number) {
    this.#state = new Uint32Array(4);
    let word = seed >>> 0;
    for (let i = 0; i < 4; i++) {
      word = (word + 0x9e3779b9) >>> 0;
      let z = word;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      this.#state[i] = z ^ (z >>> 15);
    }
  }

  /** @returns an integer uniform in 0 .. 2^32 - 1 */
  uint32(): number {
    const s = this.#state;
    const [s0, s1, s2, s3] = [s[0]!, s[1]!, s[2]!, s[3]!];
    const product = Math.imul(s1, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const t = s1 << 9;
    const u2 = s2 ^ s0, u3 = s3 ^ s1;
    s[1] = s1 ^ u2;
    s[0] = s0 ^ u3;
    s[2] = u2 ^ t;
    s[3] = (u3 << 11) | (u3 >>> 21);
    return result;
  }

  /** @returns a number uniform in [0, 1) */
  uniform(): number {
    return this.uint32() / 4294967296;
  }

  /**
   * @param bound exclusive upper bound, 1 .. 2^32
   * @returns an integer uniform in 0 .. bound - 1
   */
  integer(bound: number): number {
    return Math.floor(this.uniform() * bound);
  }

  /** @returns a standard normal number (Box-Muller) */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /**
   * @param size how many
   * @returns 0 .. size - 1 in random order (Fisher-Yates)
   */
  permutation(size: number): Uint32Array<ArrayBuffer> {
    const order = Uint32Array.from({ length: size }, (_, i) => i);
    for (let i = size - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}
