// Mends what the theme leaves open to people who use a keyboard or a screen reader, and marks the captions.
(function () {
  "use strict";

  function each(selector, mend) {
    document.querySelectorAll(selector).forEach(mend);
  }

  function mend() {
    // What a control is called must contain what it shows: "Search Ctrl+K", "Color mode".
    each("button.search-button-field", function (button) {
      button.removeAttribute("aria-label");
      button.querySelectorAll(".search-button__kbd-shortcut").forEach(function (keys) {
        keys.setAttribute("aria-hidden", "true");
      });
    });
    each("button.theme-switch-button", function (button) {
      button.setAttribute("aria-label", "Color mode");
      button.querySelectorAll(".theme-switch").forEach(function (icon) {
        icon.removeAttribute("title");
        icon.setAttribute("aria-hidden", "true");
      });
    });
    each("details > summary[aria-label]", function (summary) {
      if (summary.textContent.trim()) summary.removeAttribute("aria-label");
    });
    // The arrow that folds a chapter's pages in the contents shows no word.
    each(".bd-sidebar-primary li > details > summary", function (summary) {
      var link = summary.closest("li").querySelector("a");
      summary.setAttribute("aria-label", "Pages of " + (link ? link.textContent.trim() : "this part"));
    });
    each("button[title]:not([aria-label]), a.btn[title]:not([aria-label])", function (control) {
      if (!control.textContent.trim()) control.setAttribute("aria-label", control.title);
    });
    each("i.fa, i.fas, i.fab, i.fa-solid, span.fa-solid, span.fas", function (icon) {
      icon.setAttribute("aria-hidden", "true");
    });

    // The logo and the search field of the sidebar lie in no region.
    each("#pst-primary-sidebar", function (sidebar) {
      sidebar.setAttribute("role", "region");
      sidebar.setAttribute("aria-label", "Sidebar");
    });
    each("#pst-back-to-top, #pst-skip-link", function (control) {
      if (!control.closest("[role=region], nav, main") && control.id === "pst-back-to-top") {
        var box = document.createElement("div");
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", "Back to top");
        control.parentNode.insertBefore(box, control);
        box.appendChild(control);
      }
    });

    // "Figure 4.1. What to see." below a cell is that cell's caption.
    each(".bd-article p > em:first-child", function (start) {
      if (/^Figure \d+\.\d+\.?$/.test(start.textContent.trim())) start.parentNode.classList.add("book-caption");
    });
    // Tables in text are wrapped so that they scroll inside their own box.
    each(".bd-article table", function (table) {
      if (table.closest(".pst-scrollable-table-container, .text_html, .table-box")) return;
      var box = document.createElement("div");
      box.className = "table-box";
      table.parentNode.insertBefore(box, table);
      box.appendChild(table);
    });
    // What a cell prints in columns keeps them: at least two of its lines have a gap, or are rows of an array.
    each(".bd-article .cell_output pre", function (box) {
      var gaps = box.textContent.split("\n").filter(function (line) { return /\S {2,}\S|^ +[-\d.[]/.test(line); });
      if (gaps.length > 1) box.classList.add("book-columns");
    });
    // A picture leads to its own file, where a phone can enlarge it; most do already.
    each(".bd-article img[src*='_images/']", function (image) {
      if (image.closest("a")) return;
      var link = document.createElement("a");
      link.href = image.src;
      image.replaceWith(link);
      link.append(image);
    });
    // Lists that are none, and entries of a list with a role of yesterday.
    each("dt.sig dl", function (list) {
      list.querySelectorAll("dd").forEach(function (line) {
        var text = document.createElement("span");
        text.className = "sig-line";
        text.append.apply(text, Array.from(line.childNodes));
        line.replaceWith(text);
      });
      var lines = document.createElement("span");
      lines.append.apply(lines, Array.from(list.childNodes));
      list.replaceWith(lines);
    });
    each("div.citation[role=doc-biblioentry]", function (entry) {
      entry.setAttribute("role", "listitem");
    });
  }

  // A box that scrolls must be reachable by keyboard, and say what it is. Which ones do depends on the window's width.
  function scrollers() {
    var boxes = 0;
    var places = ".bd-article pre, .pst-scrollable-table-container, .table-box, .bd-article .text_html, .katex-display";
    each(places, function (box) {
      if (box.scrollWidth <= box.clientWidth + 1) {
        ["tabindex", "role", "aria-label"].forEach(function (name) {
          box.removeAttribute(name);
        });
        return;
      }
      boxes += 1;
      var kind = box.tagName === "PRE" ? (box.closest(".cell_output") ? "Output" : "Code") : box.classList.contains("katex-display") ? "Formula" : "Table";
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", kind + " " + boxes + ", scrolls sideways");
    });
  }

  function start() {
    mend();
    scrollers();
    window.addEventListener("load", scrollers); // fonts and formulas are there now
    window.addEventListener("resize", scrollers);
    document.addEventListener("toggle", scrollers, true);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
