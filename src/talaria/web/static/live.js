// Fetches the page again every few seconds and puts its <main> in place of the one that is shown.
"use strict";

const main = () => document.querySelector("main[data-every]");
const stale = document.querySelector(".stale");

// Not while somebody selects text or stands with the keyboard in what would be replaced.
const isBusy = () =>
  document.hidden ||
  !window.getSelection().isCollapsed ||
  (document.activeElement !== main() && main().contains(document.activeElement));

const tell = (words) => {
  stale.textContent = words;
  stale.hidden = words === "";
};

const replace = (text) => {
  const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("main[data-every]");
  if (fresh === null) return;
  for (const open of main().querySelectorAll("details[open][id]")) {
    const same = fresh.querySelector(`#${CSS.escape(open.id)}`);
    if (same !== null) same.open = true;
  }
  const hadFocus = document.activeElement === main();
  const scrolled = [...main().querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  main().replaceWith(document.adoptNode(fresh));
  main().querySelectorAll(".scroll").forEach((box, at) => (box.scrollLeft = scrolled[at] ?? 0));
  if (hadFocus) main().focus({ preventScroll: true });
};

const refresh = async () => {
  if (isBusy()) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
    if (answer.redirected) return location.reload();
    if (!answer.ok) return tell("The server has trouble; this is what it last said.");
    const text = await answer.text();
    if (!isBusy()) replace(text);
    tell("");
  } catch {
    tell("The server cannot be reached; this is what it last said.");
  }
};

const again = () => setTimeout(() => refresh().finally(again), 1000 * Number(main().dataset.every));
again();
document.addEventListener("visibilitychange", refresh);
