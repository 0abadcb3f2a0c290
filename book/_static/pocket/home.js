// The home page's canvas: the files of "A ViT in your browser" are loaded when the page stands, and only if it is seen.
(function () {
  "use strict";
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const stage = document.getElementById("pocket-missing");
  if (matchMedia("print").matches || !("IntersectionObserver" in window)) return;

  function load() {
    for (const name of ["vit", "weights", "images", "page"]) {
      const script = document.createElement("script");
      script.src = `${folder}${name}.js`;
      script.async = false; // in this order
      document.head.append(script);
    }
  }

  const watch = new IntersectionObserver((seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    watch.disconnect();
    load();
  });
  addEventListener("load", () => watch.observe(stage));
})();
