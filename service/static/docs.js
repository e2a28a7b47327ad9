// The API's reference page: Swagger UI over this service's own openapi.json.
// Invariant: asks nobody but its own origin (no validator, no outside badge).

window.addEventListener("DOMContentLoaded", () => {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#reference",
    deepLinking: true,
    validatorUrl: null,
  });
});
