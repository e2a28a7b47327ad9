// What a visitor is told of the limits of the model that comes with the service.
// Invariant: nothing is said of any other model, whose limits nobody here knows.

const EMBEDDED = "twigvlm-embedded";
const SCENES = "Scenes of the kind that this small model knows";
const NOTICE =
  "This is not one of its scenes. The small model that runs here has only ever seen emoji art: it will answer, "
  + "and most likely be wrong. For photographs, serve a full-size model.";

/** @param {string} model its served name  @param {import("./picture.js").Picture} picture */
export function tellLimits(model, picture) {
  const embedded = model === EMBEDDED;
  const notice = document.getElementById("notice");
  if (embedded) document.getElementById("scenes-title").textContent = SCENES;
  notice.textContent = NOTICE;
  notice.hidden = !embedded || picture.bundled;
}
