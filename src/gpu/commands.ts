// What recorded work consists of, and how it becomes a command buffer.
import type { Tensor } from "./tensor.ts";

/** A kernel ready to run: what a command encoder needs. */
export interface Dispatch {
  /** The kernel's label. */
  readonly label: string;
  /** Compiled shader. */
  readonly pipeline: GPUComputePipeline;
  /** Its buffers. */
  readonly bindGroup: GPUBindGroup;
  /** Workgroups. */
  readonly grid: readonly [number, number, number];
}

/** Bytes of a tensor that become bytes of another; all numbers are multiples of 4. */
export interface CopyRange {
  /** The source. */
  readonly from: Tensor;
  /** Where its bytes begin. */
  readonly fromByte: number;
  /** The target: not a view of the same buffer. */
  readonly to: Tensor;
  /** Where the bytes go. */
  readonly toByte: number;
  /** How many. */
  readonly byteLength: number;
}

/** Copies between buffers. */
export interface Copies {
  /** For profiles. */
  readonly label: string;
  /** What is copied, in any order. */
  readonly ranges: readonly CopyRange[];
}

/** A piece of recorded work. */
export type Command = Dispatch | Copies;

/**
 * Encodes work, neighbouring dispatches in one pass.
 *
 * @param encoder where to
 * @param commands in the order they run
 */
export function encode(encoder: GPUCommandEncoder, commands: readonly Command[]): void {
  let pass: GPUComputePassEncoder | undefined;
  for (const command of commands) {
    if ("ranges" in command) {
      pass?.end();
      pass = undefined;
      encodeCopies(encoder, command);
    } else {
      pass ??= encoder.beginComputePass();
      encodeDispatch(pass, command);
    }
  }
  pass?.end();
}

/** Encodes one dispatch. */
export function encodeDispatch(
  pass: GPUComputePassEncoder,
  { pipeline, bindGroup, grid }: Dispatch,
): void {
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, bindGroup);
  pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
}

/** Encodes copies; no pass may be open. */
export function encodeCopies(encoder: GPUCommandEncoder, { ranges }: Copies): void {
  for (const { from, fromByte, to, toByte, byteLength } of ranges) {
    encoder.copyBufferToBuffer(
      from.buffer,
      from.offset + fromByte,
      to.buffer,
      to.offset + toByte,
      byteLength,
    );
  }
}
