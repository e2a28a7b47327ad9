// The picture that is asked about: dropped, pasted, picked, or one of the bundled scenes.
// Invariant: there is one picture or none; a file this browser cannot draw is still sent as it is.

import { make } from "./dom.js";

/** @typedef {{blob: Blob, name: string, url: string, alt: string, bitmap: ImageBitmap | null, questions: string[],
 *   bundled: boolean}} Picture */

const ANY_QUESTIONS = ["Describe the image.", "How many objects are there?", "What is the background?"];

export class PicturePicker {
  /** @param {(picture: Picture) => void} onPicture */
  constructor(onPicture) {
    this.onPicture = onPicture;
    this.picture = null;
    this.drop = document.getElementById("drop");
    this.preview = document.getElementById("preview");
    this.fileName = document.getElementById("file-name");
    this.scenes = document.getElementById("scenes");
    this.listen();
  }

  listen() {
    const input = document.getElementById("file");
    input.addEventListener("change", () => {
      this.take(input.files[0]);
      input.value = ""; // so that the same file can be picked again
    });
    document.addEventListener("paste", (event) => {
      const file = firstFile(event.clipboardData);
      if (!file) return; // text goes where it is pasted
      event.preventDefault();
      this.take(file);
    });
    // The whole page takes a drop: a miss would otherwise leave the page for the picture.
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) this.drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.drop.classList.remove("over");
      this.take(firstFile(event.dataTransfer));
    });
  }

  /** @param {File | undefined} file */
  async take(file) {
    if (file) await this.use(await opened(file, file.name || "pasted.png", file.name, ANY_QUESTIONS, false));
  }

  /** @param {Picture} picture */
  use(picture) {
    this.picture = picture;
    this.preview.hidden = picture.bitmap === null;
    if (picture.bitmap) this.preview.src = picture.url;
    this.preview.alt = picture.alt;
    this.drop.classList.toggle("filled", picture.bitmap !== null);
    this.fileName.textContent = picture.bitmap
      ? `${picture.name} · ${picture.bitmap.width} × ${picture.bitmap.height}`
      : `${picture.name} · cannot be shown here; the service may read it`;
    for (const button of this.scenes.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(picture.bundled && button.dataset.file === picture.name));
    }
    this.onPicture(picture);
  }

  /** Fills the strip of bundled scenes and shows the first. */
  async loadScenes() {
    const response = await fetch(new URL("samples/index.json", import.meta.url));
    const scenes = await response.json();
    this.scenes.replaceChildren(...scenes.map((scene) => this.sceneButton(scene)));
    if (!this.picture && scenes.length) await this.openScene(scenes[0]);
  }

  sceneButton(scene) {
    const image = make("img", { src: sceneUrl(scene), alt: "", width: 56, height: 56, loading: "lazy" });
    const button = make("button", { type: "button", title: scene.title, ariaLabel: scene.title }, image);
    button.dataset.file = scene.file;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.openScene(scene));
    return button;
  }

  async openScene(scene) {
    const response = await fetch(sceneUrl(scene));
    await this.use(await opened(await response.blob(), scene.file, scene.alt, scene.questions, true));
  }
}

const sceneUrl = (scene) => new URL(`samples/${scene.file}`, import.meta.url).href;

function firstFile(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files[0];
}

async function opened(blob, name, alt, questions, bundled) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  return { blob, name, alt: alt || name, questions, bundled, bitmap, url: URL.createObjectURL(blob) };
}
