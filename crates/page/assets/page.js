// What a page does by itself: everything here is a help, and nothing is needed. Without it, times and states are those of when the page was loaded.
"use strict";

(() => {
  const UNITS = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];

  /** A length of time with its two largest units, as the controller writes it: `2m10s`. */
  function length(seconds) {
    let text = "";
    let first = -1;
    UNITS.forEach(([unit, size], at) => {
      const count = Math.floor(seconds / size);
      seconds -= count * size;
      if (count > 0 && (first < 0 || at === first + 1)) {
        text += count + unit;
        if (first < 0) first = at;
      }
    });
    return text || "0s";
  }

  // Times are told from the controller's clock, and ours may be wrong.
  const ahead = (Date.parse(document.documentElement.dataset.now) || Date.now()) - Date.now();

  function tick() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const seconds = Math.round((Date.now() + ahead - Date.parse(time.dateTime)) / 1000);
      const relative = time.querySelector(".relative");
      if (relative) relative.textContent = seconds >= 0 ? `${length(seconds)} ago` : `in ${length(-seconds)}`;
    }
  }

  /** Says something to those who listen to the page. */
  function say(text) {
    const said = document.getElementById("said");
    if (said && text && said.textContent !== text) said.textContent = text;
  }

  function addCopyButtons(root) {
    if (!navigator.clipboard) return;
    for (const code of root.querySelectorAll("code[data-copy]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy ${code.textContent}`);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "Copied";
          say("Copied");
        } catch {
          button.textContent = "Not copied";
        }
        setTimeout(() => { button.textContent = "Copy"; }, 2000);
      });
      code.after(button);
    }
  }

  /** Puts the status that the controller sent in the place of the one that is shown, unless somebody is filling in a form in it. */
  function replace(status, markup) {
    const typed = [...status.querySelectorAll("input:not([type=hidden])")];
    const busy = status.contains(document.activeElement) || typed.some((input) => input.value !== input.defaultValue);
    const fresh = new DOMParser().parseFromString(markup, "text/html").body;
    const state = (root) => root.querySelector("[data-state]")?.dataset.state;
    const changed = state(fresh) !== state(status);
    if (busy && !changed) {
      const [old, now] = [status.querySelector(".sentence"), fresh.querySelector(".sentence")];
      if (old && now) old.replaceWith(now);
      return;
    }
    const focused = status.contains(document.activeElement);
    status.replaceChildren(...fresh.childNodes);
    if (focused) document.getElementById("main")?.focus();
    if (changed) say(status.querySelector("[data-say]")?.textContent);
  }

  function follow(status) {
    // A browser has six connections to a host by HTTP/1.1: pages that nobody looks at let go of theirs.
    let events = null, over = false;
    const stop = () => { events?.close(); events = null; };
    const start = () => {
      if (events || over || document.hidden) return;
      events = new EventSource(status.dataset.live);
      events.addEventListener("status", (event) => replace(status, event.data));
      events.addEventListener("ended", (event) => {
        over = true;
        stop();
        replace(status, event.data);
      });
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
    addEventListener("pagehide", stop);
    start();
    // A page that comes back out of the browser's memory is not told any more.
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  // A button shows at once that it was pressed, and a form is sent once.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) {
      event.preventDefault();
      return;
    }
    form.dataset.sent = "1";
    event.submitter?.setAttribute("aria-busy", "true");
  });
  addEventListener("pageshow", () => {
    document.querySelectorAll("form[data-sent]").forEach((form) => { delete form.dataset.sent; });
    document.querySelectorAll("button[aria-busy]").forEach((button) => button.removeAttribute("aria-busy"));
  });

  addCopyButtons(document);
  const status = document.querySelector("#status[data-live]");
  if (status && "EventSource" in window) follow(status);
  document.querySelector("[aria-invalid=true], .trouble[role=alert]")?.focus?.();
  setInterval(tick, 10000);

  // A menu closes where it is left.
  const account = document.querySelector(".account");
  if (account) {
    document.addEventListener("click", (event) => { if (!account.contains(event.target)) account.open = false; });
    account.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        account.open = false;
        account.querySelector("summary").focus();
      }
    });
  }
})();
