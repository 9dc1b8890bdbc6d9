// The page: sliders through slices, copies of commands, open and closed sections, print.
"use strict";
(() => {
  document.querySelectorAll("input[data-frames]").forEach((slider) => {
    const group = document.querySelector(`[data-group="${CSS.escape(slider.dataset.frames)}"]`);
    const strips = group.querySelectorAll(".strip");
    const show = () => {
      const share = Number(slider.value) / Number(slider.max); // models may have other numbers of slices
      strips.forEach((strip) => {
        const last = Number(strip.dataset.count) - 1;
        strip.style.objectPosition = `0 ${(100 * Math.round(share * last)) / Math.max(last, 1)}%`;
      });
      slider.nextElementSibling.value = Number(slider.value) + 1;
    };
    slider.addEventListener("input", show);
    group.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        slider.value = Number(slider.value) + Math.sign(event.deltaY);
        show();
      }
    }, { passive: false });
    show(); // browsers keep the place of a slider when a page is loaded again
  });

  document.querySelectorAll(".copied > button").forEach((button) => {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling.textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "Selected: press Ctrl-C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  });

  const sections = [...document.querySelectorAll("details.card")];
  const toggle = document.getElementById("toggle");
  const isAnyOpen = () => sections.some((each) => each.open);
  const name = () => { toggle.textContent = isAnyOpen() ? "Close all sections" : "Open all sections"; };
  toggle.addEventListener("click", () => {
    const isOpen = !isAnyOpen();
    sections.forEach((each) => { each.open = isOpen; });
    name();
  });
  sections.forEach((each) => each.addEventListener("toggle", name));

  document.querySelector("nav details").open = !matchMedia("(max-width: 64rem)").matches;

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("main details:not([open], #log)")];
    closed.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));

  document.querySelectorAll("nav a").forEach((link) => link.addEventListener("click", () => {
    document.getElementById(link.hash.slice(1)).open = true;
  }));
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    entries.forEach((entry) => seen[entry.isIntersecting ? "add" : "delete"](entry.target.id));
    const current = sections.find((each) => seen.has(each.id));
    links.forEach((link, id) => {
      if (current && id === current.id) {
        link.setAttribute("aria-current", "true");
      } else {
        link.removeAttribute("aria-current");
      }
    });
  }, { rootMargin: "-10% 0px -60% 0px" });
  sections.forEach((each) => observer.observe(each));

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, textarea, canvas") || event.ctrlKey || event.metaKey || event.altKey;
    if (isTyping || !["j", "k"].includes(event.key)) {
      return;
    }
    const summaries = sections.map((each) => each.querySelector("summary"));
    const index = summaries.indexOf(document.activeElement.closest("details.card")?.querySelector("summary"));
    const next = event.key === "j" ? index + 1 : Math.max(index - 1, 0);
    summaries[Math.min(next, summaries.length - 1)].focus();
    summaries[Math.min(next, summaries.length - 1)].scrollIntoView({ block: "start" });
  });
})();
