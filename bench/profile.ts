// Where the time of a distillation goes, stage by stage and kernel by kernel: `deno task profile` with the flags of
// `deno task distill`. "adapter" is the time in which the adapter computes; the rest of a stage's time is the host's,
// enlarged here by the timestamps around every dispatch. With `--shapes` kernels are told apart by shape too.
import { distill } from "../src/distill/distill.ts";
import { planRun } from "../src/distill/dry_run.ts";
import { main } from "../src/cli/main.ts";
import { Device } from "../src/gpu/device.ts";
import { Profiler } from "../src/gpu/profiler.ts";

const MOST_ROWS = 30;

const shapes = Deno.args.includes("--shapes");
const profiler = new Profiler();
const walls = new Map<string, number>();
let since = 0;
const enter = (stage: string) => {
  const now = performance.now();
  walls.set(profiler.stage, (walls.get(profiler.stage) ?? 0) + now - since);
  since = now;
  profiler.stage = stage;
};
const write = (stream: typeof Deno.stdout) => (text: string) => {
  stream.writeSync(new TextEncoder().encode(text));
};
const code = await main(
  Deno.args.filter((arg) => arg !== "--shapes"),
  {
    stdout: write(Deno.stdout),
    stderr: write(Deno.stderr),
    columns: null,
    now: () => performance.now(),
    cwd: Deno.env.get("INIT_CWD") ?? Deno.cwd(),
    signal: new AbortController().signal,
  },
  {
    plan: planRun,
    open: () => Device.open({ profiler }),
    distill: async (model, data, recipe, options) => {
      since = performance.now();
      profiler.stage = "prepare";
      const { onProgress } = options;
      const result = await distill(model, data, recipe, {
        ...options,
        onProgress: (progress) => {
          if (progress.stage !== profiler.stage) enter(progress.stage);
          onProgress?.(progress);
        },
      });
      enter("");
      return result;
    },
  },
);
if (code === 0) printProfile();
Deno.exit(code);

function printProfile(): void {
  for (const [stage, wall] of walls) {
    const own = profiler.times.filter((time) => time.stage === stage);
    if (own.length === 0) continue;
    const kernels = new Map<string, { dispatches: number; ms: number }>();
    for (const { label, dispatches, nanoseconds } of own) {
      const name = shapes ? label : label.split(" ")[0]!;
      const sum = kernels.get(name) ?? { dispatches: 0, ms: 0 };
      kernels.set(name, {
        dispatches: sum.dispatches + dispatches,
        ms: sum.ms + nanoseconds / 1e6,
      });
    }
    const rows = [...kernels].sort(([, a], [, b]) => b.ms - a.ms);
    const busy = rows.reduce((sum, [, { ms }]) => sum + ms, 0);
    console.log(
      `\n${stage}: ${(wall / 1e3).toFixed(2)} s, adapter ${(busy / 1e3).toFixed(2)} s`,
    );
    for (const [name, { dispatches, ms }] of rows.slice(0, MOST_ROWS)) {
      const share = `${(100 * ms / busy).toFixed(1)} %`;
      const each = (1e3 * ms / dispatches).toFixed(0);
      console.log(
        `${ms.toFixed(1).padStart(10)} ms ${share.padStart(7)} ${
          String(dispatches).padStart(7)
        } x ${each.padStart(7)} us  ${name}`,
      );
    }
  }
}
