// Keeps the edited image up to date: a preview as soon as the last one is drawn, and a full image when moves pause.

import * as api from "./api.js";

export class Editor {
  /** recipe() returns what to decode; onImage(result, seconds), onBusy(text) and onError(message) show what comes. */
  constructor({ recipe, onImage, onBusy, onError }) {
    Object.assign(this, { recipe, onImage, onBusy, onError });
    this.isPreviewing = false;
    this.isStale = false;
    this.full = null;
    this.round = 0; // one per opened case
  }

  /** Another case: what is decoded for the last one is not waited for; on the server, the new request replaces it. */
  restart() {
    this.round += 1;
    this.isPreviewing = false;
    return this.refresh();
  }

  /** Something has changed. */
  async refresh() {
    this.changed = performance.now();
    this.isStale = true;
    if (this.full) this.full.abort();
    if (this.isPreviewing) return;
    this.isPreviewing = true;
    const round = this.round;
    try {
      while (this.isStale && round === this.round) {
        this.isStale = false;
        await this.decode("preview");
      }
    } catch (error) {
      if (round === this.round) this.onError(error.message);
      return;
    } finally {
      if (round === this.round) this.isPreviewing = false;
    }
    if (round === this.round) await this.refine();
  }

  async refine() {
    const full = new AbortController();
    this.full = full;
    try {
      await this.decode("full", full.signal);
    } catch (error) {
      if (!full.signal.aborted) this.onError(error.message);
    } finally {
      if (this.full === full) this.full = null;
    }
  }

  async decode(quality, signal) {
    const recipe = this.recipe();
    const changed = this.changed;
    this.onBusy(quality);
    const result = await api.image(recipe, quality, signal);
    if (!result || (signal && signal.aborted) || recipe.case !== this.recipe().case) return;
    this.onImage(result, (performance.now() - changed) / 1000);
  }
}
