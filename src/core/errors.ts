// The error classes that carry data or that callers catch by type; everything else is a built-in class by meaning
// (TypeError wrong kind, RangeError out of range, SyntaxError unparsable).

/** A WebGPU operation failed: shader, binding, limit, memory or lost device. */
export class GpuError extends Error {
  /** Tells the class apart where `instanceof` cannot. */
  override readonly name = "GpuError";
}

/** Bytes from outside do not have the format they should: names the file and the place in it. */
export class FormatError extends Error {
  /** Name that survives bundling and structured cloning. */
  override readonly name = "FormatError";
  /** File (or the caller's name for the bytes). */
  readonly path: string;
  /** Byte offset, tensor, node or key inside the file. */
  readonly place: string;

  /**
   * An error that names the file and the place.
   *
   * @param path file, or the caller's name for the bytes
   * @param place byte offset, tensor, node or key inside it
   * @param detail what was found and what was expected
   */
  constructor(path: string, place: string, detail: string) {
    super(`${path}: ${place === "" ? "" : `${place}: `}${detail}`);
    this.path = path;
    this.place = place;
  }
}

/** The network uses an operator, or a form of it, that stilla does not implement. */
export class UnsupportedError extends Error {
  /** Name that survives bundling and structured cloning. */
  override readonly name = "UnsupportedError";
  /** ONNX operator type. */
  readonly opType: string;
  /** Name of the node. */
  readonly node: string;

  /**
   * An error that names the node.
   *
   * @param opType ONNX operator type
   * @param node name of the node
   * @param detail what is not supported, and what would be
   */
  constructor(opType: string, node: string, detail: string) {
    super(`node "${node}" (${opType}): ${detail}`);
    this.opType = opType;
    this.node = node;
  }
}
