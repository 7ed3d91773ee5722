//! The log's doors, over a controller that is faked at its RPC.

mod fake;

use proptest::prelude::*;
use tonic::Status;

use super::*;
use crate::form::Fields;
use fake::{Event, Events, Fake, Told};

/// Rows as somebody sees them: where each begins, and what it says.
fn rows(html: &str) -> Vec<(u64, String)> {
    let row = |row: &str| {
        let (_, row) = row.split_once("data-at=\"").unwrap();
        let (at, text) = row.split_once('"').unwrap();
        (at.parse().unwrap(), text.split_once('>').unwrap().1.replace("</div>", ""))
    };
    html.split("<div class=\"log-row").skip(1).map(row).collect()
}

fn texts(html: &str) -> Vec<String> {
    rows(html).into_iter().map(|(_, text)| text).collect()
}

fn log(fake: &Fake, attempt: u32) -> Log {
    Log::new(&fake.calls(), "x", attempt)
}

fn numbered(lines: std::ops::Range<u64>) -> String {
    lines.map(|line| format!("this is line number {line:07} of some log\n")).collect()
}

#[tokio::test]
async fn a_million_lines_are_opened_anywhere_by_reading_little() {
    let fake = Fake::of(numbered(0..1_000_000));
    let size = 40_000_000;
    let little = 640 * 1024; // two messages, and what the transport has read ahead
    let tail = log(&fake, 0).view(Place::Tail).await.unwrap();
    assert!(fake.sent() <= little);
    let seen = texts(&tail.html);
    assert_eq!(seen.last().unwrap(), "this is line number 0999999 of some log");
    assert_eq!((tail.size, tail.end, tail.is_last, tail.attempt), (size, size, true, 1));
    assert!(seen.len() >= 500 && seen.len() <= view::VIEW_ROWS, "{}", seen.len());

    let before = log(&fake, 1).view(Place::Before(tail.start)).await.unwrap();
    assert!(fake.sent() <= little);
    assert_eq!((before.end, before.is_last), (tail.start, false));

    let middle = log(&fake, 1).view(Place::Near(size / 2 + 7)).await.unwrap();
    assert!(fake.sent() <= 2 * little);
    assert_eq!(texts(&middle.html)[0], "this is line number 0500001 of some log");

    let first = log(&fake, 1).view(Place::From(0)).await.unwrap();
    assert!(fake.sent() <= little);
    assert_eq!(texts(&first.html)[0], "this is line number 0000000 of some log");
}

/// Everything of a log, a view at a time, from its end to its beginning.
async fn backwards(log: &Log) -> String {
    let mut view = log.view(Place::Tail).await.unwrap();
    let mut html = view.html.clone();
    while view.start > 0 {
        let before = log.view(Place::Before(view.start)).await.unwrap();
        assert_eq!(before.end, view.start);
        assert!(before.start < view.start, "nothing comes before {}", view.start);
        html.insert_str(0, &before.html);
        view = before;
    }
    html
}

async fn forwards(log: &Log) -> String {
    let (mut html, mut from) = (String::new(), 0);
    loop {
        let view = log.view(Place::From(from)).await.unwrap();
        assert_eq!(view.start, from);
        html.push_str(&view.html);
        if view.is_last {
            return html;
        }
        assert!(view.end > from, "nothing comes after {from}");
        from = view.end;
    }
}

#[tokio::test]
async fn views_side_by_side_are_the_whole_log() {
    let long = "x".repeat(30_000);
    let lines: String =
        (0..4000).map(|line| format!("\x1b[3{}m{line}\n{}", line % 8, if line % 97 == 0 { &long } else { "\n" })).collect();
    let empty = "\n".repeat(5000);
    let fake = Fake::of(format!("{lines}{empty}last"));
    let mut whole = String::new();
    let mut all = rows::Rows::new(0);
    all.take(format!("{lines}{empty}last").as_bytes(), &mut whole);
    all.finish(&mut whole);
    let log = log(&fake, 1);
    let places = |html: &str| rows(html).into_iter().map(|(at, _)| at).collect::<Vec<_>>();
    assert!(places(&forwards(&log).await) == places(&whole));
    assert!(places(&backwards(&log).await) == places(&whole));
}

#[tokio::test]
async fn a_line_without_an_end_can_be_gone_through_from_both_sides() {
    let fake = Fake::of("x".repeat(300_000));
    let log = log(&fake, 1);
    assert_eq!(rows(&forwards(&log).await).len(), 5);
    assert_eq!(rows(&backwards(&log).await).len(), 5);
    let view = log.view(Place::Near(150_000)).await.unwrap();
    assert_eq!(view.start, 150_000);
}

#[tokio::test]
async fn a_gap_is_told_as_a_whole_in_the_words_of_the_command_line() {
    let fake = Fake::running();
    fake.change(|told| {
        let log = &mut told.attempts[0];
        log.print(numbered(0..3000));
        log.lose(1 << 40);
        log.print(numbered(0..50));
        log.end();
    });
    let size = (1 << 40) + 3050 * 40;
    let told = format!("{} bytes of the log are missing at byte 120000: {}", 1u64 << 40, fake::CUT);
    for place in [Place::Tail, Place::Before(size), Place::Before(1 << 30), Place::Near(1 << 30), Place::From(1 << 30)] {
        let view = log(&fake, 1).view(place).await.unwrap();
        assert!(texts(&view.html).contains(&told), "{place:?}: {:?}", texts(&view.html).first());
        assert!(view.start <= 120_000, "{place:?}: {}", view.start);
    }
    let before = log(&fake, 1).view(Place::Before(120_000)).await.unwrap();
    assert_eq!(texts(&before.html).last().unwrap(), "this is line number 0002999 of some log");
    let whole = rows(&forwards(&log(&fake, 1)).await);
    assert_eq!(rows(&backwards(&log(&fake, 1)).await), whole);
    assert_eq!(whole.len(), 3051);
    // where a log ends with what there was no room for
    let fake = Fake::running();
    fake.change(|told| {
        told.attempts[0].print("one\n");
        told.attempts[0].lose(1 << 20);
        told.attempts[0].end();
    });
    let view = log(&fake, 1).view(Place::Tail).await.unwrap();
    assert!(texts(&view.html)[0].starts_with("1048576 bytes of the log are missing at byte 4"), "{}", view.html);
    assert_eq!((view.start, view.end), (4, (1 << 20) + 4));
}

#[tokio::test]
async fn colours_from_before_a_view_are_in_force_in_it() {
    let fake = Fake::of("\x1b[31m\nred\nred");
    let view = log(&fake, 1).view(Place::From(6)).await.unwrap();
    assert_eq!(texts(&view.html), ["<span class=\"f1\">red</span>", "<span class=\"f1\">red</span>"]);
}

/// What a browser has after these events: as `log.js` does, the row that had not ended is replaced.
#[derive(Default)]
struct Browser {
    rows: Vec<(u64, String)>,
    open: bool,
    last: Option<String>,
    told: Vec<Event>,
}

impl Browser {
    fn take(&mut self, event: Event) {
        if !event.id.is_empty() {
            self.last = Some(event.id.clone());
        }
        if event.name == "rows" {
            let batch: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            let html = batch["html"].as_str().unwrap();
            if std::mem::take(&mut self.open) {
                self.rows.pop();
            }
            self.open = html.contains(" data-open");
            self.rows.extend(rows(html));
        } else {
            self.told.push(event);
        }
    }

    /// Takes so many events, or all.
    async fn read(&mut self, events: &mut Events, count: usize) {
        for _ in 0..count {
            let Some(event) = events.next().await else { return };
            self.take(event);
        }
    }

    /// Takes events until it sees a text.
    async fn until(&mut self, events: &mut Events, text: &str) {
        while !self.rows.iter().any(|(_, row)| row.contains(text)) {
            let event = events.next().await.unwrap_or_else(|| panic!("it ended without {text:?}: {:?}", self.rows.last()));
            self.take(event);
        }
    }

    fn texts(&self) -> Vec<&str> {
        self.rows.iter().map(|(_, text)| text.as_str()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_lost_the_connection_loses_and_repeats_nothing() {
    let fake = Fake::running();
    let (mut browser, mut printed) = (Browser::default(), String::new());
    for round in 0..20 {
        let mut events = fake.follow("attempt=1&from=0", browser.last.as_deref()).await;
        let piece = format!("{}half of line {round} ", numbered(round * 300..(round + 1) * 300));
        fake.print(&piece);
        printed.push_str(&piece);
        // It breaks anywhere: after one batch, or when all has come.
        if round % 3 == 0 {
            browser.read(&mut events, 1).await;
        } else {
            browser.until(&mut events, &format!("half of line {round}")).await;
        }
    }
    fake.end();
    let mut events = fake.follow("attempt=1&from=0", browser.last.as_deref()).await;
    browser.read(&mut events, usize::MAX).await;
    let (mut all, mut whole) = (rows::Rows::new(0), String::new());
    all.take(printed.as_bytes(), &mut whole);
    all.finish(&mut whole);
    assert_eq!(browser.rows, rows(&whole));
    assert_eq!(browser.told.last().unwrap().name, "end");
}

#[tokio::test(start_paused = true)]
async fn a_line_is_seen_before_it_ends_and_once_when_it_has() {
    let fake = Fake::running();
    let mut browser = Browser::default();
    let mut events = fake.follow("attempt=1&from=0", None).await;
    fake.print("are you sure? ");
    browser.until(&mut events, "are you sure?").await;
    assert!(browser.open);
    fake.print("yes\nnext\n");
    browser.until(&mut events, "next").await;
    assert_eq!(browser.texts(), ["are you sure? yes", "next"]);
}

#[tokio::test(start_paused = true)]
async fn many_lines_come_in_few_events_of_bounded_size() {
    let fake = Fake::running();
    let mut events = fake.follow("attempt=1&from=0", None).await;
    for line in 0..10_000 {
        fake.print(&numbered(line..line + 1));
    }
    fake.end();
    let mut browser = Browser::default();
    let begun = tokio::time::Instant::now();
    let mut count = 0;
    while let Some(event) = events.next().await {
        assert!(rows(&event.data).len() <= view::VIEW_ROWS + 1);
        browser.take(event);
        count += 1;
    }
    assert_eq!(browser.rows.len(), 10_000);
    assert!(count <= 20, "{count} events");
    // events are apart, so that a browser has time for each
    assert!(begun.elapsed() >= std::time::Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_takes_is_not_read() {
    let fake = Fake::of(numbered(0..200_000));
    let mut events = fake.follow("attempt=1&from=0", None).await;
    assert_eq!(events.next().await.unwrap().name, "rows");
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    let sent = fake.sent();
    assert!(sent <= 640 * 1024, "{sent} bytes are held for one who does not read");
}

#[tokio::test(start_paused = true)]
async fn following_goes_on_to_the_attempts_that_come_after() {
    let fake = Fake::running();
    let mut browser = Browser::default();
    let mut events = fake.follow("attempt=1&from=0&all=1", None).await;
    fake.print("a first attempt that printed a little more\n");
    browser.until(&mut events, "first attempt").await;
    fake.change(|told| told.attempts[0].end());
    // it is a while until the next one
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    fake.change(|told| told.attempts.push(Default::default()));
    fake.print("second\n");
    browser.until(&mut events, "second").await;
    assert_eq!(browser.rows.last().unwrap().0, 0);
    assert_eq!(browser.last.as_deref(), Some("2-7"));
    let attempt = Event { name: "attempt".to_owned(), id: "2-0".to_owned(), data: "2".to_owned() };
    assert_eq!(browser.told, std::slice::from_ref(&attempt));
    fake.end();
    browser.read(&mut events, usize::MAX).await;
    assert_eq!(browser.told.last().unwrap().name, "end");

    // one who comes back when the second attempt is there already
    let mut late = Browser::default();
    let mut events = fake.follow("attempt=1&from=0&all=1", Some("1-43")).await;
    late.read(&mut events, usize::MAX).await;
    assert_eq!(late.texts(), ["second"]);
    assert_eq!(late.told[0], attempt);
    // and one who looks at the first alone
    let mut first = Browser::default();
    let mut events = fake.follow("attempt=1&from=0", None).await;
    first.read(&mut events, usize::MAX).await;
    assert_eq!(first.texts(), ["a first attempt that printed a little more"]);
    assert_eq!(first.told.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_waits_is_followed_from_its_first_line_on() {
    let fake = Fake::running();
    fake.change(|told| told.attempts.clear());
    let view = log(&fake, 0).view(Place::Tail).await.unwrap();
    assert_eq!((view.attempt, view.note.as_str()), (0, "nothing has been printed yet"));
    let mut browser = Browser::default();
    let mut events = fake.follow("all=1", None).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    fake.change(|told| told.attempts.push(Default::default()));
    fake.print("hello\n");
    browser.until(&mut events, "hello").await;
    assert_eq!(browser.last.as_deref(), Some("1-6"));
    assert_eq!((browser.told[0].name.as_str(), browser.told[0].data.as_str()), ("attempt", "1"));
}

#[tokio::test(start_paused = true)]
async fn the_end_is_told_and_what_is_wrong_with_the_log() {
    let told = async |change: fn(&mut Told)| {
        let fake = Fake::of("a\n");
        fake.change(change);
        let mut browser = Browser::default();
        browser.read(&mut fake.follow("all=1", None).await, usize::MAX).await;
        let end = browser.told.pop().unwrap();
        assert_eq!(end.name, "end");
        serde_json::from_str::<serde_json::Value>(&end.data).unwrap()
    };
    assert_eq!(told(|_| {}).await, serde_json::json!({"size": 2, "sealed": true, "note": ""}));
    let damaged = told(|told| told.attempts[0].damaged = true).await;
    assert!(damaged["note"].as_str().unwrap().starts_with("the log of attempt 1 is not whole"), "{damaged}");
    let open = told(|told| told.attempts[0].sealed = false).await;
    assert!(open["note"].as_str().unwrap().starts_with("the log may not be whole"), "{open}");
    let never_started = told(|told| told.attempts.clear()).await;
    assert_eq!(never_started["note"], "nothing was printed");
    let gap = Fake::running();
    gap.print("a");
    gap.change(|told| told.attempts[0].lose(5));
    gap.end();
    let mut browser = Browser::default();
    browser.read(&mut gap.follow("attempt=1&from=0", None).await, usize::MAX).await;
    assert_eq!(browser.texts(), ["a", &format!("5 bytes of the log are missing at byte 1: {}", fake::CUT)]);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_and_passing_troubles_are_not() {
    let fake = Fake::running();
    let mut events = fake.follow("attempt=1&from=0&all=1", None).await;
    fake.change(|told| {
        told.refuses = Some(Status::permission_denied("you may not"));
        told.attempts[0].end();
    });
    let event = events.next().await.unwrap();
    assert_eq!((event.name.as_str(), event.data.as_str()), ("failed", "you may not"));
    assert_eq!(events.next().await, None);

    let fake = Fake::running();
    let mut events = fake.follow("attempt=1&from=0&all=1", None).await;
    fake.change(|told| {
        told.refuses = Some(Status::unavailable("stopping"));
        told.attempts[0].end();
    });
    // the stream just ends, and a browser connects again by itself
    assert_eq!(events.next().await, None);
    assert_eq!(fake.get("/executions/x/log/follow?attempt=1", None).await.status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_log_cannot_say_anything_but_rows() {
    let hostile = "a\n\nevent: end\ndata: x\n\nid: 9-9\n\r\n<script>alert(1)</script>\u{2028}\u{202e}\x1b]0;x\x07\n\"}\n</div></section><a href=x>\n";
    let fake = Fake::of(hostile);
    let mut events = fake.follow("attempt=1&from=0", None).await;
    let mut browser = Browser::default();
    browser.read(&mut events, usize::MAX).await;
    assert_eq!(browser.rows.len(), 10);
    assert_eq!(browser.told.len(), 1);
    let execution = v1::Execution { id: "<b>".to_owned(), attempts: vec![started(1), started(2)], ..Default::default() };
    let wanted = Wanted { search: "\"><script>".to_owned(), ..Wanted::of(&Fields::default()).unwrap() };
    let section = section(&fake.calls(), &execution, &wanted).await.unwrap();
    assert!(!section.contains("<script") && !section.contains("<b>") && !section.contains("</section><a"), "{section}");
    assert!(!section.contains(" style="), "the content security policy forbids styles in the page");
}

fn started(number: u32) -> v1::Attempt {
    v1::Attempt { number, starting_at: Some(Default::default()), ..Default::default() }
}

#[tokio::test]
async fn without_script_links_lead_to_every_part_of_every_attempt() {
    let fake = Fake::of(numbered(0..10_000));
    fake.change(|told| told.attempts.push(Default::default()));
    let execution = v1::Execution { id: "x".to_owned(), attempts: vec![started(1), started(2)], ..Default::default() };
    let shown = async |query: &str| {
        section(&fake.calls(), &execution, &Wanted::of(&Fields::of_query(Some(query))).unwrap()).await.unwrap()
    };
    let newest = shown("").await;
    assert!(
        newest.contains("nothing has been printed yet") && newest.contains("data-follows") && newest.contains("data-all"),
        "{newest}"
    );
    assert!(newest.contains(r#"href="/executions/x/log?attempt=1">Attempt 1</a>"#), "{newest}");
    let first = shown("attempt=1").await;
    assert!(first.contains("line number 0009999") && !first.contains("data-follows") && !first.contains("data-all"));
    assert!(first.contains(r#"aria-current="true">Attempt 1<"#));
    let (_, earlier) = first
        .split_once("?attempt=1&#38;before=")
        .or_else(|| first.split_once("?attempt=1&amp;before="))
        .expect("a link to what is earlier");
    let (before, _) = earlier.split_once('"').unwrap();
    let second = shown(&format!("attempt=1&before={before}")).await;
    assert!(second.contains("rel=\"next\"") && second.contains("rel=\"prev\""));
    let found = shown("attempt=1&q=NUMBER+0005000").await;
    assert!(found.contains("found at byte 200000") && found.contains("line number 0005000"), "{}", &found[..2000]);
    let more = shown("attempt=1&q=0005&from=0").await;
    assert!(more.contains("Next match"));
    assert!(shown("attempt=1&q=nowhere").await.contains("not found from there to the end"));
}

#[tokio::test]
async fn a_download_is_the_bytes_that_were_printed() {
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let fake = Fake::of(bytes.clone());
    let response = fake.get("/executions/x/log/download?attempt=1", None).await;
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(headers["content-disposition"], "attachment; filename=\"octavius-x-1.log\"");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    assert!(body == bytes, "{} bytes, and not {}", body.len(), bytes.len());
    let (status, _) = Fake::running().body("/executions/x/log/download?attempt=7").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_search_reaches_the_whole_log_in_bounded_steps() {
    let fake = Fake::of(format!("{}NEEDLE at the end", numbered(0..110_000))).in_chunks_of(10_007);
    let (mut from, mut found, mut steps) = (0, Vec::new(), 0);
    loop {
        let answer = fake.json(&format!("/executions/x/log/search?attempt=1&q=needle&from={from}")).await;
        found.extend(answer["lines"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()));
        assert!(fake.sent() <= 5 * 1024 * 1024);
        steps += 1;
        if answer["is_all"] == true {
            break;
        }
        assert!(answer["next"].as_u64().unwrap() > from);
        from = answer["next"].as_u64().unwrap();
    }
    assert_eq!((found, steps), (vec![4_400_000], 2));
    // lines that all match are told of in steps, too
    let (mut from, mut count) = (0, 0);
    while from < 5000 * 40 {
        let answer = fake.json(&format!("/executions/x/log/search?attempt=1&q=line&from={from}")).await;
        let lines = answer["lines"].as_array().unwrap();
        assert!(lines.len() <= 2000 && lines[0] == from);
        count += lines.len() as u64;
        from = answer["next"].as_u64().unwrap();
    }
    assert_eq!(from, count * 40);
    let (status, _) = fake.body("/executions/x/log/search?attempt=1&q=").await;
    assert_eq!(status, 400);
    let (status, _) = fake.body(&format!("/executions/x/log/search?attempt=1&q={}", "x".repeat(300))).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn addresses_that_mean_nothing_are_refused() {
    let fake = Fake::of("a");
    for query in ["from=x", "from=-1", "attempt=x", "from=1&before=2", "near=99999999999999999999999"] {
        assert_eq!(fake.body(&format!("/executions/x/log/view?{query}")).await.0, 400, "{query}");
    }
    for query in ["from=18446744073709551615", "near=18446744073709551615", "before=18446744073709551615"] {
        let view = fake.json(&format!("/executions/x/log/view?{query}")).await;
        assert_eq!((view["end"].as_u64(), view["is_last"].as_bool()), (Some(1), Some(true)), "{query}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a log comes in pieces, and wherever one begins to look, rows have their places: none is lost between two views.
    #[test]
    fn a_view_from_anywhere_goes_on_to_the_end(near in 0u64..250_000, chunk in 1usize..100_000) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fake = Fake::of(numbered(0..5000)).in_chunks_of(chunk.max(500));
            let log = log(&fake, 1);
            let mut view = log.view(Place::Near(near)).await.unwrap();
            prop_assert!(view.start >= near.min(200_000) || view.is_last);
            prop_assert_eq!(view.start % 40, 0);
            let mut seen = rows(&view.html);
            while !view.is_last {
                view = log.view(Place::From(view.end)).await.unwrap();
                seen.extend(rows(&view.html));
            }
            let expected: Vec<_> = (seen[0].0..200_000).step_by(40).collect();
            prop_assert!(seen.iter().map(|row| row.0).collect::<Vec<_>>() == expected);
            Ok(())
        })?;
    }
}
