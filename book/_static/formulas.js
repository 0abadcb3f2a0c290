// Typesets the page's formulas with KaTeX, which comes with the book: no other host is asked.
document.addEventListener("DOMContentLoaded", function () {
  "use strict";
  document.querySelectorAll("span.math, div.math").forEach(function (place) {
    if (!window.katex) return;
    var tex = place.textContent.trim().replace(/^\\[([]([\s\S]*)\\[)\]]$/, "$1");
    try {
      place.innerHTML = window.katex.renderToString(tex, { displayMode: place.tagName === "DIV" });
    } catch (error) {
      console.error("formula: " + error.message); // it stays as it was written
    }
  });
});
