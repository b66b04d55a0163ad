// Shows openapi.json with Swagger UI, in the colours that the browser prefers.
const dark = matchMedia("(prefers-color-scheme: dark)");
const applyScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyScheme);
applyScheme();

// The form for a list of files looks this component up, and warns in the console that there is none.
const fileInput = ({ React, getComponent }) => ({
  components: { JsonSchema_string_binary: (props) => React.createElement(getComponent("JsonSchema_string"), props) },
});

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger",
  deepLinking: true,
  plugins: [fileInput],
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // it would send the document to another host
});
