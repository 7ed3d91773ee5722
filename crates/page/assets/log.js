// The log of an execution, looked at through a window: some thousand rows of it are in the page, whatever its length, and others are fetched as one
// scrolls. Places are byte offsets. What comes as HTML is the controller's: escaped text, and classes of a fixed set.
"use strict";

(() => {
  // Rows in the page: a few hundred screens of them are no work for a browser, ten thousand are.
  const MOST_ROWS = 4000;
  // Browsers scroll no higher things than some ten million pixels.
  const MOST_PIXELS = 6e6;
  // Rows after which a block is full; blocks are dropped as a whole.
  const BLOCK_ROWS = 500;
  // Matches that are kept; with so many nobody steps through all.
  const MOST_MATCHES = 10000;
  // Ranges that are painted as found.
  const MOST_PAINTED = 2000;
  // A screen reader reads what comes, unless it is more than so many rows a second.
  const READABLE = 5;
  // How long to wait after the controller has refused to be followed, in milliseconds.
  const AGAIN = 5000;
  // How often that is tried.
  const MOST_REFUSED = 5;

  const rowsOf = (block) => block.children;
  const at = (row) => Number(row.dataset.at);

  class Viewer {
    constructor(section) {
      const data = section.dataset;
      Object.assign(this, {
        section, base: data.base, attempt: Number(data.attempt), all: "all" in data, live: "follows" in data, size: Number(data.size),
        scroll: section.querySelector(".log-scroll"), before: section.querySelector(".log-before"),
        rows: section.querySelector(".log-rows"), after: section.querySelector(".log-after"),
        status: section.querySelector(".log-status"), input: section.querySelector("input[type=search]"),
        blocks: [], isLast: "last" in data, following: false, loading: false, queue: [], recent: [], turn: 0, search: null,
      });
      this.take({ html: this.rows.innerHTML, start: Number(data.start), end: Number(data.end), is_last: this.isLast, size: this.size });
      section.classList.add("log-live");
      section.querySelector(".log-places").hidden = true;
      section.querySelectorAll(".log-tools, .log-steps").forEach((part) => { part.hidden = false; });
      this.wrap(stored("log-wrap") === "1");
      this.listen();
      const isAsked = ["from", "before", "near"].some((name) => new URLSearchParams(location.search).has(name));
      if (this.isLast && !isAsked) this.follow(true); else this.toTop();
      this.attach();
      if (this.input.value) this.find(this.input.value, Number(data.start));
    }

    listen() {
      const { section, scroll, input } = this;
      scroll.addEventListener("scroll", () => {
        this.follow(this.isLast && this.isAtEnd(), false);
        this.soon();
      }, { passive: true });
      const does = {
        follow: () => (this.following ? this.follow(false) : this.toEnd()),
        wrap: () => this.wrap(!section.classList.contains("log-wrap")),
        copy: () => this.copy(),
        link: () => this.copyLink(),
        next: () => this.step(1),
        previous: () => this.step(-1),
      };
      section.addEventListener("click", (event) => {
        const button = event.target.closest("button[data-do]");
        if (button) does[button.dataset.do]();
      });
      section.querySelector("form").addEventListener("submit", (event) => {
        event.preventDefault();
        this.submit(1);
      });
      input.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && event.shiftKey) {
          event.preventDefault();
          this.submit(-1);
        } else if (event.key === "Escape") {
          event.preventDefault();
          input.value = "";
          this.forget();
          scroll.focus();
        }
      });
      document.addEventListener("keydown", (event) => {
        const types = event.target.closest("input, textarea, select, [contenteditable]");
        if (event.key === "/" && !types && !event.ctrlKey && !event.metaKey && !event.altKey) {
          event.preventDefault();
          input.focus();
          input.select();
        }
      });
      // A page that nobody sees takes nothing: browsers have few connections, and draw nothing meanwhile.
      document.addEventListener("visibilitychange", () => (document.hidden ? this.detach() : this.attach()));
      new ResizeObserver(() => {
        if (this.following) this.toBottom();
        this.soon();
      }).observe(scroll);
    }

    say(text) {
      if (this.status.textContent !== text) this.status.textContent = text;
    }

    // ---- The window

    get start() { return this.blocks.length ? this.blocks[0].start : 0; }
    get end() { return this.blocks.length ? this.blocks[this.blocks.length - 1].end : 0; }

    block(html, start, end) {
      const template = document.createElement("template");
      template.innerHTML = html;
      const element = document.createElement("div");
      element.append(template.content);
      return { element, start, end };
    }

    // Shows this view alone.
    take(view) {
      const block = this.block(view.html, view.start, view.end);
      this.blocks = [block];
      this.rows.replaceChildren(block.element);
      this.seen(view);
      this.measure();
    }

    seen(view) {
      this.size = Math.max(view.size, view.end);
      if (view.is_last) this.isLast = true;
    }

    // How high what is not in the page is taken to be.
    measure() {
      const height = this.rows.offsetHeight, bytes = this.end - this.start;
      if (!this.scale && bytes > 0 && height > 0) this.scale = height / bytes;
      const scale = Math.min(this.scale || 0, MOST_PIXELS / Math.max(this.size, 1));
      this.before.style.height = `${Math.round(this.start * scale)}px`;
      this.after.style.height = `${this.isLast ? 0 : Math.max(20, Math.round((this.size - this.end) * scale))}px`;
      this.paintFound();
    }

    // Changes the window, and keeps what is looked at where it is.
    keep(change) {
      const row = this.firstSeen();
      const top = row && row.getBoundingClientRect().top;
      change();
      this.trim();
      this.measure();
      if (row && row.isConnected) this.scroll.scrollTop += row.getBoundingClientRect().top - top;
    }

    // The first row that can be seen.
    firstSeen() {
      const top = this.scroll.getBoundingClientRect().top;
      const isBelow = (element) => element.getBoundingClientRect().bottom > top;
      const block = this.blocks.find(({ element }) => isBelow(element));
      if (!block) return null;
      const rows = rowsOf(block.element);
      let low = 0, high = rows.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (isBelow(rows[middle])) high = middle; else low = middle + 1;
      }
      return rows[low] || null;
    }

    // Drops blocks that are far from what is looked at, where there are too many rows.
    trim() {
      let count = this.blocks.reduce((sum, { element }) => sum + element.childElementCount, 0);
      while (count > MOST_ROWS && this.blocks.length > 1) {
        const view = this.scroll.getBoundingClientRect();
        const above = view.top - this.blocks[0].element.getBoundingClientRect().bottom;
        const below = this.blocks[this.blocks.length - 1].element.getBoundingClientRect().top - view.bottom;
        const isFirst = this.following || above > below;
        const dropped = isFirst ? this.blocks.shift() : this.blocks.pop();
        if (!isFirst) {
          this.isLast = false;
          this.detach();
        }
        count -= dropped.element.childElementCount;
        dropped.element.remove();
      }
    }

    isAtEnd() {
      const { scrollTop, clientHeight, scrollHeight } = this.scroll;
      return scrollTop + clientHeight >= scrollHeight - 8;
    }

    // To the first row that is here.
    toTop() { this.scroll.scrollTop += this.rows.getBoundingClientRect().top - this.scroll.getBoundingClientRect().top; }

    toBottom() { this.scroll.scrollTop = this.scroll.scrollHeight; }

    // Looks, once the browser has time, whether rows are wanted that are not there.
    soon() {
      if (this.ticking) return;
      this.ticking = true;
      requestAnimationFrame(() => {
        this.ticking = false;
        this.fill();
      });
    }

    fill() {
      if (this.loading) return;
      const view = this.scroll.getBoundingClientRect(), rows = this.rows.getBoundingClientRect();
      const margin = 1.5 * view.height;
      if (rows.bottom < view.top - margin || rows.top > view.bottom + margin) {
        const share = this.scroll.scrollTop / Math.max(1, this.scroll.scrollHeight - view.height);
        if (share > 0.999) this.toEnd(); else this.jump(`near=${Math.floor(share * this.size)}`);
      } else if (this.start > 0 && rows.top > view.top - margin) {
        this.load(`before=${this.start}`, (part) => {
          if (part.start >= this.start) return;
          this.keep(() => {
            const block = this.block(part.html, part.start, this.start);
            this.blocks.unshift(block);
            this.rows.prepend(block.element);
          });
        });
      } else if (!this.isLast && rows.bottom < view.bottom + margin) {
        this.load(`from=${this.end}`, (part) => {
          this.seen(part);
          this.keep(() => this.append(part));
          if (this.isLast) this.attach();
        });
      }
    }

    // Fetches a piece; what was asked for before and has not come is not wanted any more.
    async load(place, then) {
      const turn = ++this.turn;
      this.loading = true;
      this.scroll.setAttribute("aria-live", "off");
      try {
        const view = await this.ask("view", place);
        if (turn !== this.turn) return;
        if (view.attempt === this.attempt) then(view);
        this.loading = false;
        this.soon();
      } catch (error) {
        if (turn !== this.turn) return;
        this.say(error.message);
        // The next scrolling asks again.
        this.loading = false;
      }
    }

    async ask(what, query) {
      const attempt = this.attempt ? `attempt=${this.attempt}&` : "";
      let answer;
      try {
        answer = await fetch(`${this.base}/${what}?${attempt}${query}`, { headers: { accept: "application/json" } });
      } catch {
        throw new Error("the controller cannot be reached: scroll or search again in a moment");
      }
      if (answer.status === 401) throw new Error("your session has ended: load the page again and sign in");
      if (!answer.ok) throw new Error(`the log cannot be read (${answer.status}): load the page again`);
      return answer.json();
    }

    // Shows another part of the log, from its first row on, or from its end.
    jump(place, then) {
      return this.load(place, (view) => {
        this.isLast = false;
        this.detach();
        this.take(view);
        if (place === "") {
          this.toBottom();
          this.follow(true);
        } else {
          this.toTop();
          this.follow(false);
        }
        if (then) then();
        if (this.isLast) this.attach();
      });
    }

    toEnd() {
      if (this.isLast) this.follow(true); else this.jump("");
    }

    // ---- What comes

    follow(follows, scrolls = true) {
      this.following = follows;
      this.section.querySelector("[data-do=follow]").setAttribute("aria-pressed", String(follows));
      if (follows && scrolls) this.toBottom();
    }

    attach() {
      if (!this.live || !this.isLast || this.source || document.hidden) return;
      const from = this.attempt ? `attempt=${this.attempt}&from=${this.end}&` : "";
      const source = new EventSource(`${this.base}/follow?${from}${this.all ? "all=1" : ""}`);
      this.source = source;
      const on = (name, does) => source.addEventListener(name, (event) => {
        if (this.source === source) does(event.data);
      });
      on("rows", (data) => {
        this.refused = 0;
        this.queue.push(JSON.parse(data));
        if (this.queue.length === 1) requestAnimationFrame(() => this.flush());
      });
      on("attempt", (data) => {
        this.flush();
        this.turnTo(Number(data));
      });
      on("end", (data) => {
        this.flush();
        const { size, note } = JSON.parse(data);
        this.size = Math.max(this.size, size);
        this.live = false;
        this.detach();
        this.say(note || "the log has ended");
        this.section.dispatchEvent(new CustomEvent("log-end", { bubbles: true }));
      });
      on("failed", (data) => {
        this.flush();
        this.live = false;
        this.detach();
        this.say(data);
      });
      source.addEventListener("error", () => {
        // A connection that broke is made again by the browser; one that was refused is not.
        if (this.source !== source || source.readyState !== EventSource.CLOSED) return;
        this.detach();
        // Refused again and again: the session has ended, most likely. Whoever comes back to the page is told.
        this.refused = (this.refused || 0) + 1;
        if (this.refused < MOST_REFUSED) setTimeout(() => this.attach(), AGAIN);
        else this.say("the log is not followed any more: reload the page");
      });
    }

    detach() {
      if (this.source) this.source.close();
      this.source = null;
      this.queue = [];
    }

    // Shows what has come since the browser drew last.
    flush() {
      const batches = this.queue;
      this.queue = [];
      if (!batches.length) return;
      const now = performance.now();
      const change = () => batches.forEach((batch) => {
        if (!this.isLast || batch.start > this.end) return;
        this.append(batch);
        this.recent.push([now, (batch.html.match(/data-at/g) || []).length]);
      });
      this.recent = this.recent.filter(([when]) => now - when < 1000);
      const many = batches.length > READABLE || this.recent.reduce((sum, [, count]) => sum + count, 0) > READABLE;
      this.scroll.setAttribute("aria-live", this.following && !many ? "polite" : "off");
      if (this.following) {
        change();
        this.trim();
        this.measure();
        this.toBottom();
      } else {
        this.keep(change);
      }
    }

    // Adds rows at the end; those that begin there already are replaced, such as one that had not ended.
    append(part) {
      let block = this.blocks[this.blocks.length - 1];
      while (block && block.element.lastElementChild && at(block.element.lastElementChild) >= part.start) {
        block.element.lastElementChild.remove();
      }
      if (!block || block.element.childElementCount >= BLOCK_ROWS) {
        block = this.block("", part.start, part.end);
        this.blocks.push(block);
        this.rows.append(block.element);
      }
      block.element.append(...this.block(part.html, 0, 0).element.childNodes);
      block.end = part.end;
      this.size = Math.max(this.size, part.end);
    }

    // Another attempt has begun: its log is what is looked at now.
    turnTo(attempt) {
      if (this.attempt === attempt) return;
      this.turn += 1;
      Object.assign(this, { attempt, size: 0, isLast: true, scale: 0, loading: false });
      this.forget();
      this.take({ html: "", start: 0, end: 0, size: 0, is_last: true });
      this.say(`attempt ${attempt}`);
      this.scroll.setAttribute("aria-label", `Log of attempt ${attempt}`);
      const download = this.section.querySelector(".log-download");
      if (download) download.href = `${this.base}/download?attempt=${attempt}`;
      const nav = this.section.querySelector(".log-attempts");
      if (nav) {
        nav.querySelectorAll("[aria-current]").forEach((link) => link.removeAttribute("aria-current"));
        const link = document.createElement("a");
        Object.assign(link, { href: `${this.base}?attempt=${attempt}`, textContent: `Attempt ${attempt}` });
        link.setAttribute("aria-current", "true");
        nav.append(link);
      }
      this.follow(true);
    }

    // ---- Search

    submit(direction) {
      const text = this.input.value;
      if (!text) return this.forget();
      const top = this.firstSeen();
      return this.search && this.search.text === text ? this.step(direction) : this.find(text, top ? at(top) : 0);
    }

    forget() {
      this.search = null;
      this.rows.querySelectorAll(".here").forEach((row) => row.classList.remove("here"));
      this.paintFound();
      this.say("");
    }

    // Searches the whole log, a part at a time, and goes to the first match from `from` on.
    async find(text, from) {
      this.forget();
      const search = { text, lines: [], next: 0, isAll: false, index: -1, from };
      this.search = search;
      this.say("searching");
      this.paintFound();
      await this.findMore(search, MOST_MATCHES);
      if (this.search === search && search.index < 0 && search.lines.length) this.show(0);
    }

    async findMore(search, most) {
      try {
        while (this.search === search && !search.isAll && search.lines.length < most) {
          const found = await this.ask("search", `q=${encodeURIComponent(search.text)}&from=${search.next}`);
          search.lines.push(...found.lines.filter((line) => !search.lines.length || line > search.lines[search.lines.length - 1]));
          Object.assign(search, { next: found.next, isAll: found.is_all });
          if (this.search === search && search.index < 0) {
            const index = search.lines.findIndex((line) => line >= search.from);
            if (index >= 0) this.show(index);
          }
        }
        if (this.search === search) this.sayFound();
      } catch (error) {
        if (this.search === search) this.say(error.message);
      }
    }

    sayFound() {
      const { lines, index, isAll } = this.search;
      const count = `${lines.length}${isAll ? "" : " or more"} ${lines.length === 1 ? "line" : "lines"}`;
      if (!lines.length) this.say(isAll ? "not found" : "searching"); else this.say(index < 0 ? `found in ${count}` : `${index + 1} of ${count}`);
    }

    async step(direction) {
      const search = this.search;
      if (!search) return this.submit(direction);
      // What has come since is searched when one gets there.
      if (direction > 0 && search.index === search.lines.length - 1 && (this.live || !search.isAll)) {
        search.isAll = false;
        await this.findMore(search, search.lines.length + MOST_MATCHES);
      }
      if (this.search === search && search.lines.length) {
        this.show((search.index + direction + search.lines.length) % search.lines.length);
      }
      return undefined;
    }

    // Goes to a match.
    show(index) {
      this.search.index = index;
      const line = this.search.lines[index];
      this.follow(false);
      const mark = () => {
        this.rows.querySelectorAll(".here").forEach((row) => row.classList.remove("here"));
        const row = this.rowAt(line);
        if (!row) return;
        row.classList.add("here");
        const view = this.scroll.getBoundingClientRect(), place = row.getBoundingClientRect();
        this.scroll.scrollTop += place.top - view.top - Math.max(0, (view.height - place.height) / 2);
      };
      if (line >= this.start && (line < this.end || this.isLast)) mark(); else this.jump(`from=${line}`, mark);
      this.sayFound();
    }

    // The row that this byte is in.
    rowAt(offset) {
      const block = [...this.blocks].reverse().find(({ start }) => start <= offset);
      return block && [...rowsOf(block.element)].reverse().find((row) => at(row) <= offset);
    }

    // Paints what is found in the rows that are here, where the browser can without changing them.
    paintFound() {
      if (!("highlights" in CSS)) return;
      CSS.highlights.delete("log-found");
      if (!this.search) return;
      const wanted = this.search.text.toLowerCase(), ranges = [];
      const texts = document.createTreeWalker(this.rows, NodeFilter.SHOW_TEXT);
      while (texts.nextNode() && ranges.length < MOST_PAINTED) {
        const node = texts.currentNode, text = node.data.toLowerCase();
        if (text.length !== node.data.length) continue;
        for (let from = text.indexOf(wanted); from >= 0; from = text.indexOf(wanted, from + wanted.length)) {
          const range = new Range();
          range.setStart(node, from);
          range.setEnd(node, from + wanted.length);
          ranges.push(range);
        }
      }
      CSS.highlights.set("log-found", new Highlight(...ranges));
    }

    // ---- Tools

    wrap(wraps) {
      this.keep(() => {
        this.section.classList.toggle("log-wrap", wraps);
        this.scale = 0;
      });
      this.section.querySelector("[data-do=wrap]").setAttribute("aria-pressed", String(wraps));
      store("log-wrap", wraps ? "1" : "0");
      if (this.following) this.toBottom();
    }

    async copy() {
      const selection = getSelection();
      const isHere = !selection.isCollapsed && this.rows.contains(selection.anchorNode) && this.rows.contains(selection.focusNode);
      const rows = [...this.rows.querySelectorAll(".log-row")].map((row) => row.textContent);
      const all = !isHere && this.isLast && this.start === 0;
      await this.put(isHere ? selection.toString() : `${rows.join("\n")}\n`, isHere ? "copied what is selected"
        : all ? `copied all ${rows.length} lines` : `copied the ${rows.length} lines around; the whole is in the download`);
    }

    async copyLink() {
      const row = this.firstSeen();
      const from = row && !this.following ? `&from=${at(row)}` : "";
      await this.put(`${location.origin}${this.base}?attempt=${this.attempt}${from}`, "copied the address of these lines");
    }

    async put(text, done) {
      try {
        await navigator.clipboard.writeText(text);
        this.say(done);
      } catch {
        this.say("the browser does not let this page copy: select the text and copy it with the keyboard");
      }
    }
  }

  function stored(name) {
    try { return localStorage.getItem(name); } catch { return null; }
  }

  function store(name, value) {
    try { localStorage.setItem(name, value); } catch { /* a browser that keeps nothing forgets it */ }
  }

  document.querySelectorAll("section.log").forEach((section) => new Viewer(section));
})();
