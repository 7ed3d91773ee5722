//! What rows look like, and that nothing else ever comes out.

use proptest::prelude::*;

use super::super::paint;
use super::*;

/// The HTML of a whole log.
fn html(bytes: &[u8]) -> String {
    let (mut rows, mut out) = (Rows::new(0), String::new());
    rows.take(bytes, &mut out);
    rows.finish(&mut out);
    out
}

/// What stands in the one row of this log.
fn row(bytes: &[u8]) -> String {
    let html = html(bytes);
    let inner = html.strip_prefix(r#"<div class="log-row" data-at="0">"#).and_then(|html| html.strip_suffix("</div>"));
    inner.unwrap_or_else(|| panic!("not one row: {html}")).to_owned()
}

/// The same of a row something of which was written over.
fn rewritten(bytes: &[u8]) -> String {
    let html = html(bytes);
    let inner = html.strip_prefix(r#"<div class="log-row over" data-at="0">"#).and_then(|html| html.strip_suffix("</div>"));
    inner.unwrap_or_else(|| panic!("not one row that was written over: {html}")).to_owned()
}

#[test]
fn a_row_says_where_its_line_begins() {
    assert_eq!(
        html("a\n\nü€\nb".as_bytes()),
        "<div class=\"log-row\" data-at=\"0\">a</div><div class=\"log-row\" data-at=\"2\"></div>\
         <div class=\"log-row\" data-at=\"3\">ü€</div><div class=\"log-row\" data-at=\"9\">b</div>"
    );
    assert_eq!(html(b""), "");
}

#[test]
fn markup_is_text() {
    assert_eq!(
        row(b"<script>alert(1)</script> & \"x\" 'y'"),
        "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;x&quot; &#39;y&#39;"
    );
    assert_eq!(
        row(b"\x1b[31m<img src=x onerror=alert(1)>\x1b[0m"),
        "<span class=\"f1\">&lt;img src=x onerror=alert(1)&gt;</span>"
    );
    assert_eq!(row(b"<\x1b[1m/div\x1b[0m>"), "&lt;<span class=\"bo\">/div</span>&gt;");
}

#[test]
fn colours_stay_over_line_breaks_until_they_are_reset() {
    assert_eq!(
        html(b"\x1b[1;38;5;208ma\nb\x1b[mc"),
        "<div class=\"log-row\" data-at=\"0\"><span class=\"f16 bo\">a</span></div>\
         <div class=\"log-row\" data-at=\"15\"><span class=\"f16 bo\">b</span>c</div>"
    );
    assert_eq!(row("a\u{9b}31mb".as_bytes()), "a<span class=\"f1\">b</span>");
}

#[test]
fn other_sequences_are_left_out() {
    assert_eq!(row(b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b"), "alinkb");
    assert_eq!(row(b"a\x1b(Bb\x1bc\x1b[2J\x1b[10;10H\x1b[?25l\x1b[>4;1mc"), "abc");
    assert_eq!(row(b"\x1b[?31mred\x1b[1$mno"), "redno");
    assert_eq!(row("\u{90}q\u{9c}a\u{9d}0;t\u{7}b".as_bytes()), "ab");
    assert_eq!(row(b"\x1bPsixel\x1b\\a\x1b_apc\x1b\\b\x1b^pm\x1b\\c"), "abc");
}

#[test]
fn an_unfinished_sequence_ends_with_its_line() {
    for begun in ["\x1b", "\x1b[", "\x1b[31", "\x1b[?", "\x1b]0;never", "\x1b]0;never\x1b", "\x1bP"] {
        let html = html(format!("{begun}\nnext").as_bytes());
        assert!(html.ends_with(">next</div>"), "{begun:?}: {html}");
    }
}

#[test]
fn controls_and_what_reorders_text_are_seen() {
    assert_eq!(row(b"a\0b\x07\x7f"), "a<span class=\"ct\">\u{2400}</span>b<span class=\"ct\">\u{2407}\u{2421}</span>");
    assert_eq!(row("a\u{85}b".as_bytes()), "a<span class=\"ct\">\u{fffd}</span>b");
    assert_eq!(row("a\u{202e}b\u{2066}".as_bytes()), "a<span class=\"ct\">⟨U+202E⟩</span>b<span class=\"ct\">⟨U+2066⟩</span>");
    assert_eq!(row("\u{2028}".as_bytes()), "<span class=\"ct\">⟨U+2028⟩</span>");
    assert_eq!(row(b"a\tb"), "a\tb");
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    assert_eq!(row(b"a\xff\xfeb\xe2\x82"), "a\u{fffd}\u{fffd}b\u{fffd}");
    assert_eq!(row(b"\xed\xa0\x80"), "\u{fffd}\u{fffd}\u{fffd}");
}

#[test]
fn a_progress_bar_is_shown_as_it_was_left() {
    assert_eq!(rewritten(b" 10%\r 20%\r100%\n"), "100%");
    assert_eq!(rewritten(b"downloading\rdone\x1b[K\n"), "done");
    assert_eq!(rewritten(b"downloading\rdone\n"), "doneloading");
    assert_eq!(rewritten(b"working\x1b[2K\x1b[1Gready\n"), "ready  ");
    assert_eq!(rewritten(b"|\x08/\x08-\x08done"), "done");
    assert_eq!(rewritten(b"\x1b[31mabc\x1b[0m\rx"), "x<span class=\"f1\">bc</span>");
    // as Windows ends its lines, and as grep colours its own
    assert_eq!(row(b"line\r\n"), "line");
    assert_eq!(row(b"\x1b[01;31m\x1b[Kmatch\x1b[m\x1b[K"), "<span class=\"f1 bo\">match</span>");
    assert_eq!(row(b"a\x1b[3Cb"), "a   b");
}

#[test]
fn a_few_bytes_do_not_become_much() {
    assert!(html(&b"\x1b[65535Cx\n".repeat(100)).len() < 100 * (MOST_BLANKS + 60));
    assert!(html(&b"\x1b[65535Gx".repeat(5_000)).len() < SHOWN_CHARS + 200);
}

#[test]
fn long_lines_are_cut_with_a_count() {
    let html = row(&vec![b'x'; SHOWN_CHARS + 1234]);
    assert_eq!(html, "x".repeat(SHOWN_CHARS) + "<span class=\"log-cut\"> … 1234 more characters</span>");
    assert_eq!(row(&vec![b'x'; SHOWN_CHARS]), "x".repeat(SHOWN_CHARS));
}

#[test]
fn a_line_without_an_end_is_broken_off() {
    let row_bytes = usize::try_from(ROW_BYTES).unwrap();
    let html = html(&vec![b'x'; 2 * row_bytes + 3]);
    let begins: Vec<_> = html.match_indices("data-at=").collect();
    assert_eq!(begins.len(), 3);
    assert!(
        html.ends_with(&format!("<div class=\"log-row\" data-at=\"{}\">xxx</div>", 2 * ROW_BYTES)),
        "{}",
        &html[html.len() - 100..]
    );
}

#[test]
fn a_row_that_has_not_ended_is_shown_as_open_and_again_when_it_has() {
    let (mut rows, mut out) = (Rows::new(7), String::new());
    rows.take(b"one\ntw", &mut out);
    assert_eq!(out, "<div class=\"log-row\" data-at=\"7\">one</div>");
    assert_eq!(rows.row_begins(), 11);
    out.clear();
    rows.open(&mut out);
    assert_eq!(out, "<div class=\"log-row\" data-at=\"11\" data-open>tw</div>");
    out.clear();
    rows.take(b"o\n", &mut out);
    assert_eq!(out, "<div class=\"log-row\" data-at=\"11\">two</div>");
    out.clear();
    rows.open(&mut out);
    assert_eq!(out, "");
}

#[test]
fn a_gap_is_told_where_it_is() {
    let (mut rows, mut out) = (Rows::new(0), String::new());
    rows.take(b"\x1b[31mabc", &mut out);
    rows.gap(8, 100, "it was <cut>\u{202e}", &mut out);
    rows.take(b"d\n", &mut out);
    assert_eq!(
        out,
        "<div class=\"log-row\" data-at=\"0\"><span class=\"f1\">abc</span></div>\
         <div class=\"log-row log-gap\" data-at=\"8\">100 bytes of the log are missing at byte 8: it was &lt;cut&gt;\u{fffd}</div>\
         <div class=\"log-row\" data-at=\"108\">d</div>"
    );
}

/// Reads HTML of rows strictly: gives each row's place and text, and fails where anything is there that should not be.
fn parse(mut html: &str) -> Vec<(u64, String)> {
    let classes = paint::all_classes();
    let mut found = Vec::new();
    while !html.is_empty() {
        let rest = html.strip_prefix("<div class=\"log-row").unwrap_or_else(|| panic!("no row: {html:?}"));
        let rest = rest.strip_prefix(" over").unwrap_or(rest).strip_prefix("\" data-at=\"").unwrap();
        let (at, rest) = rest.split_once("\">").unwrap();
        let (mut inner, after) = rest.split_once("</div>").unwrap();
        let mut text = String::new();
        while !inner.is_empty() {
            if let Some(rest) = inner.strip_prefix("<span class=\"") {
                let (names, rest) = rest.split_once("\">").unwrap();
                assert!(names == "log-cut" || names.split(' ').all(|name| classes.contains(name)), "{names:?}");
                let (within, rest) = rest.split_once("</span>").unwrap();
                assert!(!within.is_empty());
                text.push_str(within);
                inner = rest;
            } else {
                let (plain, rest) = inner.split_at(inner.find('<').unwrap_or(inner.len()));
                assert!(!plain.is_empty(), "{inner:?}");
                text.push_str(plain);
                inner = rest;
            }
        }
        assert!(
            !text.contains(|c: char| matches!(c, '<' | '>' | '"' | '\'') || (c.is_control() && c != '\t') || acts_on_text(c)),
            "{text:?}"
        );
        for (at, _) in text.match_indices('&') {
            let entity = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].iter().any(|entity| text[at..].starts_with(entity));
            assert!(entity, "{text:?}");
        }
        found.push((at.parse().unwrap(), text));
        html = after;
    }
    found
}

/// Bytes as hostile jobs print them: pieces of sequences and markup between bytes of any kind.
fn log_bytes() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "\x1b",
        "\x1b[",
        "\x1b]",
        "\x1b\\",
        "\x1b[0m",
        "\x1b[31;1m",
        "\x1b[38;5;200m",
        "\x1b[48;2;1;2;3m",
        "\x1b[4:3m",
        "\x1b[K",
        "\x1b[2K",
        "\x1b[7G",
        "\x1b[900C",
        "\x1b[7m",
        "\u{9b}",
        "\u{9d}",
        "\u{202e}",
        "\u{2028}",
        "\r",
        "\n",
        "\r\n",
        "\t",
        "\u{8}",
        "\0",
        "<",
        ">",
        "&",
        "\"",
        "'",
        "<script>",
        "</div>",
        "\" onclick=\"",
        "&lt;",
        "m",
        ";",
        "ü",
        "€",
        "💥",
        "plain text",
    ];
    let piece = prop_oneof![
        3 => proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn whatever_bytes_come_only_text_and_known_classes_go_out(bytes in log_bytes()) {
        let rows = parse(&html(&bytes));
        let mut begins: Vec<_> = (0..).zip(&bytes).filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        begins.insert(0, 0);
        // each line is one row, but a last one in which nothing is
        begins.truncate(begins.len().min(rows.len()).max(begins.len() - 1));
        prop_assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), begins);
    }

    #[test]
    fn it_does_not_matter_where_pieces_are_cut(bytes in log_bytes(), cuts in proptest::collection::vec(0usize..400, 0..8)) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let (mut rows, mut out, mut from) = (Rows::new(0), String::new(), 0);
        for cut in cuts {
            rows.take(&bytes[from..cut], &mut out);
            from = cut;
        }
        rows.finish(&mut out);
        prop_assert_eq!(out, html(&bytes));
    }

    #[test]
    fn a_row_that_is_open_is_harmless_too(bytes in log_bytes()) {
        let (mut rows, mut out) = (Rows::new(0), String::new());
        rows.take(&bytes, &mut out);
        out.clear();
        rows.open(&mut out);
        parse(&out.replace(" data-open", ""));
    }
}
