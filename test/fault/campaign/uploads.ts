import type { Client } from "minio";
import { minioClient } from "../../support/minio.ts";
import type { S3Server } from "../../support/s3-process.ts";

export interface PendingPart {
  readonly key: string;
  readonly uploadId: string;
  readonly initiated: Date;
}

/**
 * The uploads of a bucket that are neither complete nor aborted. MinIO tells of them only by whole key, unlike S3; so
 * the keys of all that were begun are kept here, and lists by prefix are answered as S3 would.
 */
export class Uploads {
  readonly #client: Client;
  readonly #bucket: string;
  readonly #keys = new Set<string>();

  constructor(server: S3Server, bucket: string) {
    this.#client = minioClient(server);
    this.#bucket = bucket;
  }

  /** An upload of the key may have been begun. */
  begun(key: string): void {
    this.#keys.add(key);
  }

  /** Those whose keys begin with the prefix, in the order of keys, as the server has them now. */
  async pending(prefix: string): Promise<PendingPart[]> {
    const found: PendingPart[] = [];
    for (const key of [...this.#keys].filter((one) => one.startsWith(prefix)).sort()) {
      const page = await this.#client.listIncompleteUploadsQuery(this.#bucket, key, "", "", "");
      const uploads = page.uploads.filter((one) => one.key === key);
      if (uploads.length === 0) this.#keys.delete(key);
      for (const { uploadId, initiated } of uploads) {
        found.push({ key, uploadId, initiated: wholeSecond(new Date(initiated)) });
      }
    }
    return found;
  }

  /** The body of an answer to ListMultipartUploads. */
  async answer(prefix: string): Promise<string> {
    const uploads = (await this.pending(prefix)).map(
      ({ key, uploadId, initiated }) =>
        `<Upload><Key>${key}</Key><UploadId>${uploadId}</UploadId><Initiated>${initiated.toISOString()}</Initiated></Upload>`,
    );
    return (
      `<?xml version="1.0" encoding="UTF-8"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` +
      `<Bucket>${this.#bucket}</Bucket><Prefix>${prefix}</Prefix><IsTruncated>false</IsTruncated>${uploads.join("")}` +
      `</ListMultipartUploadsResult>`
    );
  }
}

/** As S3 tells it. */
function wholeSecond(time: Date): Date {
  return new Date(Math.floor(time.getTime() / 1000) * 1000);
}
