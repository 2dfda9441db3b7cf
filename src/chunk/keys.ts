/**
 * What chunk ids and blobs of an encrypted repository are made with; 32 bytes each. Plain data, so that it
 * can be handed to a worker thread. A repository without encryption has none.
 */
export interface ChunkKeys {
  /** Key of the HMAC-SHA-256 that names chunks. */
  readonly id: Uint8Array;
  /** Each blob's own AES-256 key is the HMAC-SHA-256 of its chunk id with this one (R16). */
  readonly blob: Uint8Array;
}
