/** The polynomial of CRC-32 as zlib has it: reflected, the highest power left out. */
const POLYNOMIAL = 0xedb88320;

/** In reflected form, the polynomial 1. */
const ONE = 0x80000000;

/** x to the power of 2^0, 2^1, … modulo the polynomial. */
const POWERS = powersOfX();

/**
 * The CRC-32 of two byte strings, one behind the other, from theirs: a few multiplications of polynomials instead of
 * another pass over the bytes (as `crc32_combine` of zlib does it).
 *
 * @param secondLength of the second one, bytes, 0 to 2^53-1.
 */
export function crc32Combine(first: number, second: number, secondLength: number): number {
  let shift = ONE;
  let rest = secondLength;
  for (let power = 3; rest > 0; power++) {
    // 2^3 bits make a byte; the powers repeat after 32
    if (rest % 2 === 1) shift = multiply(POWERS[power % POWERS.length]!, shift);
    rest = Math.floor(rest / 2);
  }
  return (multiply(shift, first) ^ second) >>> 0;
}

/** The product of two polynomials modulo CRC-32's. */
function multiply(left: number, right: number): number {
  let product = 0;
  let shifted = right;
  for (let bit = ONE; bit !== 0; bit >>>= 1) {
    if ((left & bit) !== 0) product ^= shifted;
    shifted = (shifted & 1) === 0 ? shifted >>> 1 : (shifted >>> 1) ^ POLYNOMIAL;
  }
  return product >>> 0;
}

function powersOfX(): Uint32Array {
  const powers = new Uint32Array(32);
  powers[0] = ONE >>> 1;
  for (let power = 1; power < powers.length; power++) {
    powers[power] = multiply(powers[power - 1]!, powers[power - 1]!);
  }
  return powers;
}
