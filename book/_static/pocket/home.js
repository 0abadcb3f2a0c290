// The home page's canvas. A picture and its answer stand there at first; what the canvas needs is loaded when the reader
// asks for it: by the button, by moving a mouse over the picture, or by a tap. Focus on the button loads ahead.
(function () {
  "use strict";
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const place = (id) => document.getElementById("pocket-" + id);
  const still = place("missing"), button = place("load"), status = place("status");
  const scripts = button.dataset.scripts.split(" "), page = scripts.pop(); // which puts the canvas in the picture's place
  const asked = {};
  let begun = false, pressed = false;

  function script(name) {
    return (asked[name] ||= new Promise((loaded, failed) => {
      const node = document.createElement("script");
      node.src = `${folder}${name}.js`;
      node.onload = loaded;
      node.onerror = () => {
        delete asked[name];
        failed();
      };
      document.head.append(node);
    }));
  }
  const ahead = () => Promise.all(scripts.map(script));

  async function begin(event) {
    pressed ||= event.target === button;
    if (begun) return;
    begun = true;
    button.textContent = status.textContent = "Loading …";
    try {
      await ahead();
      pressed ||= document.activeElement === button;
      await script(page);
      status.textContent = "Ready: draw on the picture, or pick another.";
      if (pressed) place("draw").focus(); // where the button was, with all it needs
    } catch {
      begun = pressed = false;
      button.textContent = status.textContent = "It did not load. Try again";
    }
  }

  button.hidden = false;
  still.addEventListener("click", begin);
  // By its movement, not by its entering: a page that scrolls under a pointer at rest asks for nothing.
  still.addEventListener("pointermove", (event) => event.pointerType !== "touch" && begin(event), {once: true});
  button.addEventListener("focus", () => ahead().catch(() => {}), {once: true}); // what fails is told when it is pressed
})();
