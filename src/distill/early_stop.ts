// Early stopping (Prechelt 1998): training ends once the held-out error has not fallen for a while, and what is kept is the
// best that was seen, not the last.

/** What early stopping looks at. */
export interface EarlyStopOptions {
  /** Steps of the training. */
  readonly steps: number;
  /** Part of them that may pass without a lower error. */
  readonly patience: number;
  /** Held-out error of the student as it is. */
  readonly measure: () => Promise<number>;
  /** Remembers the student as it is; the result puts it back. */
  readonly snapshot: () => () => void;
}

/** Looks over the steps of a training: the error is measured that often. */
const LOOKS = 10;

/** Watches the held-out error of a training. */
export class EarlyStop {
  /** Steps between two looks. */
  readonly every: number;
  readonly #options: EarlyStopOptions;
  #least = Infinity;
  #reached = 0;
  #restore: (() => void) | undefined;

  /**
   * @param options what is watched
   */
  constructor(options: EarlyStopOptions) {
    this.#options = options;
    this.every = Math.max(1, Math.ceil(options.steps / LOOKS));
  }

  /**
   * Looks at the student.
   *
   * @param done steps so far
   * @returns whether to stop
   */
  async stops(done: number): Promise<boolean> {
    const { steps, patience, measure, snapshot } = this.#options;
    const error = await measure();
    if (error < this.#least) {
      this.#least = error;
      this.#reached = done;
      this.#restore = snapshot();
    }
    return done - this.#reached >= patience * steps;
  }

  /**
   * Puts the best back.
   *
   * @param error of the student as it is now
   * @returns whether that was better than this
   */
  restoreBest(error: number): boolean {
    if (!(this.#least < error)) return false;
    this.#restore?.();
    return true;
  }
}
