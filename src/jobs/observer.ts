import type { BackupProgress } from "../backup/request.ts";

/** Who hears of what goes on in a job. Nothing here may throw. */
export interface JobObserver {
  /** Something went otherwise than it should, in a sentence; the job goes on. */
  warn(message: string): void;
  info(message: string): void;
  /** How far a source's backup is. */
  backup(source: string, progress: BackupProgress): void;
  /** How far a verify is, in packs. */
  verify(done: number, total: number): void;
}
