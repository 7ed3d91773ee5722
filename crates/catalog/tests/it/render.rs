//! Plans as people read them: grouped, what is inherited told once, and harmless whatever the files say.

use octavius_catalog::render::{Note, RenderOptions, render_markdown, render_text};
use octavius_catalog::{Action, Files, Limits, LoadedJob, Plan, PlanOptions, load};
use octavius_core::JobName;

use super::plans::{job, planned, prune};

/// The jobs of a catalogue that lies in the folder `catalog` of its repository.
fn jobs(files: &[(String, String)]) -> Vec<LoadedJob> {
    let root = [("octavius.yaml".to_owned(), b"catalog: support\n".to_vec())];
    let files = files.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes())).chain(root);
    let loaded = load(&Files::new(files, &Limits::default()).at("catalog"));
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    loaded.jobs
}

fn file(path: &str, text: &str) -> (String, String) {
    (path.to_owned(), text.to_owned())
}

/// `count` jobs in `folder` that say nothing of their own.
fn plain(folder: &str, count: usize) -> Vec<(String, String)> {
    let job = |number| file(&format!("{folder}/job-{number:03}.yaml"), &format!("name: {folder}-{number:03}\ncommand: [x]\n"));
    (0..count).map(job).collect()
}

fn name(name: &str) -> JobName {
    JobName::new(name).unwrap()
}

/// A plan with something in every group, and with values that two, four and five jobs inherit.
fn mixed() -> Plan {
    let defaults = |image: &str, timeout: &str| {
        file("web/_defaults.yaml", &format!("# {image}\nlabels: {{team: web}}\nimage_name: {image}\ntimeout: {timeout}\n"))
    };
    let own =
        |retries: u32| file("own.yaml", &format!("name: own\ncommand: [x]\nretries: {retries}\nschedule: {{cron: 0 3 * * *}}\n"));
    let before = [
        vec![defaults("registry.example/web/tools:1.4", "5m"), own(1)],
        plain("web", 6),
        vec![
            file("few/_defaults.yaml", "author: ann\n"),
            file("mail/_defaults.yaml", "author: ann\n"),
            file("gone.yaml", "name: gone\ncommand: [x]\n"),
            file("kept.yaml", "name: kept\ncommand: [x]\nprotect: true\n"),
            file("same.yaml", "name: same\ncommand: [x]\n"),
        ],
        plain("few", 2),
        plain("mail", 3),
    ];
    let after = [
        vec![defaults("registry.example/web/tools:1.5", "10m"), own(2)],
        plain("web", 5),
        vec![
            file("web/job-005.yaml", "name: web-005\ncommand: [x]\ntimeout: 5m\nretries: 2\n"),
            file("few/_defaults.yaml", "author: bob\n"),
            file("new.yaml", "name: new\ncommand: [x]\n"),
            file("same.yaml", "# only a comment\nname: same\ncommand: [x]\n"),
        ],
        plain("few", 2),
        plain("mail", 3),
    ];
    planned(&jobs(&after.concat()), &jobs(&before.concat()), &prune()).unwrap()
}

fn noted() -> RenderOptions {
    RenderOptions {
        color: false,
        header: Some("prod/support: revision 41 (9c1f2ab) → working tree (4be07d1)".into()),
        notes: [
            (name("gone"), Note { beside: Some("last run 3h ago".into()), below: vec![] }),
            (name("web-002"), Note { beside: None, below: vec!["2 running executions keep revision 41".into()] }),
        ]
        .into(),
    }
}

#[test]
fn a_plan_is_grouped_and_what_is_inherited_is_told_once() {
    let plan = mixed();
    let text = render_text(&plan, &noted());
    insta::assert_snapshot!("grouped", text);
    insta::assert_snapshot!("grouped_markdown", render_markdown(&plan, &noted()));
    assert_eq!(text, render_text(&mixed(), &noted()));
}

#[test]
fn a_line_that_three_hundred_jobs_inherit_takes_two_lines() {
    let with = |image: &str| {
        let mut files = plain("web", 300);
        files.push(file("_defaults.yaml", &format!("image_name: {image}\n")));
        jobs(&files)
    };
    let plan = planned(&with("tools:2"), &with("tools:1"), &PlanOptions::default()).unwrap();
    assert_eq!(
        render_text(&plan, &RenderOptions::default()),
        "~ 300 jobs: web-000, web-001, web-002, web-003, web-004 and 295 more\n    \
         catalog/_defaults.yaml:1  image_name  tools:1 → tools:2\n300 changed, 0 unchanged\n"
    );
    // A value that all of them lose stands in no line any more.
    let mut files = plain("web", 300);
    files.push(file("_defaults.yaml", "{}\n"));
    let plan = planned(&jobs(&files), &with("tools:1"), &PlanOptions::default()).unwrap();
    assert!(render_text(&plan, &RenderOptions::default()).contains("295 more\n    image_name  - tools:1\n300 changed"));
    assert!(render_markdown(&plan, &RenderOptions::default()).contains("```diff\n! 300 jobs: web-000"));
}

#[test]
fn what_differs_in_long_values_is_shown() {
    let with = |image: &str| [job(&format!("name: a\nimage_name: \"{image}\"\n"))];
    let row = |before: &str, after: &str| {
        let plan = planned(&with(after), &with(before), &PlanOptions::default()).unwrap();
        render_text(&plan, &RenderOptions::default()).lines().nth(1).unwrap().trim().to_owned()
    };
    let long = format!("registry.example/{}refund", "team/".repeat(20));
    assert_eq!(
        row(&format!("{long}:1.8.2"), &format!("{long}:1.8.3")),
        ":2  image_name  …eam/team/refund:1.8.2 → …eam/team/refund:1.8.3"
    );
    let (start, rest) = ("x".repeat(10), "y".repeat(500));
    let shown = row(&format!("{start}1{rest}"), &format!("{start}2{rest}"));
    assert_eq!(shown, format!(":2  image_name  {start}1{}… → {start}2{}…", "y".repeat(48), "y".repeat(48)));
    assert_eq!(row("a", "a "), ":2  image_name  a → \"a \"");
    assert_eq!(row("a\\x01", "a\\x02"), r#":2  image_name  "a\u{1}" → "a\u{2}""#);
    assert!(row("a", &"\u{301}".repeat(100_000)).chars().count() < 120);
}

/// How a change of a description is told.
fn described(before: &str, after: &str) -> Vec<String> {
    let with = |text: &str| [job(&format!("name: a\ncommand: [x]\ndescription: {}\n", serde_json::to_string(text).unwrap()))];
    let plan = planned(&with(after), &with(before), &PlanOptions::default()).unwrap();
    let text = render_text(&plan, &RenderOptions::default());
    let lines: Vec<_> = text.lines().skip(1).map(|line| line.trim_start().to_owned()).collect();
    lines[..lines.len() - 1].to_vec()
}

#[test]
fn a_change_is_not_shown_as_smaller_than_it_is() {
    let further = " (… differs further on)";
    let rest = "y".repeat(100);
    let row = |before: &str, after: &str| described(before, after)[0].clone();
    // A second difference after the part that is shown; one before its end; one that the new value has more of.
    assert!(row(&format!("a1{rest}1z"), &format!("a2{rest}2z")).ends_with(further));
    assert!(!row(&format!("a1{rest}z"), &format!("a2{rest}z")).contains(further));
    assert!(!row(&format!("a1y1{rest}z"), &format!("a2y22{rest}z")).contains(further));
    assert!(row(&format!("a{rest}1"), &format!("a{rest}1 {}", "z".repeat(100))).ends_with(further));
    // What no terminal shows, beside what it does.
    assert_eq!(row("a\u{200b}b 1", "a\u{2060}b 2"), r#":3  description  "a\u{200b}b 1" → "a\u{2060}b 2""#);
    assert_eq!(row("a\tb 1", "a    b 2"), r#":3  description  "a\tb 1" → "a    b 2""#);

    // Lines of a text: a difference beyond the cut, a second one, and none but in what is not seen.
    let long = "x".repeat(300);
    let pair = |before: &str, after: &str| {
        let lines = described(&format!("{before}\nend\n"), &format!("{after}\nend\n"));
        assert_eq!((lines.len(), &*lines[4]), (5, "end"), "{lines:?}");
        assert_ne!(lines[2][1..], lines[3][1..], "two lines look equal");
        (lines[2].clone(), lines[3].clone())
    };
    let lead = "x".repeat(20);
    assert_eq!(pair(&format!("{long}1"), &format!("{long}2")), (format!("-…{lead}1"), format!("+…{lead}2")));
    let (gone, new) = pair(&format!("1{long}1"), &format!("2{long}2"));
    assert!(gone.ends_with(further) && new.ends_with(further), "{gone} {new}");
    assert_eq!(pair("a", "a\u{ad}"), ("-\"a\"".into(), r#"+"a\u{ad}""#.into()));
    assert_eq!(pair("a", "a\r"), ("-\"a\"".into(), r#"+"a\r""#.into()));
    assert_eq!(pair("a", "a "), ("-\"a\"".into(), "+\"a \"".into()));
    assert_eq!(pair("\ta1", "\ta2"), ("-    a1".into(), "+    a2".into()));
    // A long line that comes or goes alone, and a line that only loses its line break.
    assert!(described("a\nb\n", &format!("a\n{long}\nb\n"))[3].ends_with(&format!("…{further}")));
    let unseen = " (differs in what is not shown)";
    assert_eq!(described("a\nb\n", "a\nb")[2..], ["a".into(), format!("-b{unseen}"), format!("+b{unseen}")]);
}

#[test]
fn the_lines_that_are_left_out_are_counted() {
    let text = |range: std::ops::Range<usize>, word: &str| range.map(|number| format!("{word} {number}\n")).collect::<String>();
    let shown = described(&text(0..100, "same"), &format!("{}{}", text(0..100, "same"), text(0..70, "new")));
    assert_eq!((shown.len(), shown.last().unwrap().as_str()), (62, "… 13 more lines differ"));
    let shown = described("a\n", &format!("a\n{}", text(0..59, "new")));
    assert_eq!(shown.last().unwrap(), "… 1 more line differs");
    let both = described(&text(0..50, "old"), &text(0..50, "new"));
    assert_eq!((both[2].as_str(), both.last().unwrap().as_str()), ("-old 0", "… 41 more lines differ"));
    // Of several lines that stay, some may be left out too.
    let shown = described(&text(0..100, "a"), &format!("{}{}", text(0..57, "new"), text(0..100, "a")));
    assert_eq!(shown.last().unwrap(), "a 1");
}

#[test]
fn what_is_gone_from_a_list_does_not_look_like_what_is_new_in_it() {
    let with = |group: &str| [job(&format!("name: a\ncommand: [x]\nauthorized_groups: [{group}]\n"))];
    let long = "g".repeat(100);
    let rows = |before: &str, after: &str| {
        let plan = planned(&with(after), &with(before), &PlanOptions::default()).unwrap();
        render_text(&plan, &RenderOptions::default())
    };
    assert_eq!(rows(&format!("{long}1"), &format!("{long}2")).matches("g… (differs in what is not shown)\n").count(), 2);
    assert!(!rows("ops", "dev").contains("not shown"));
}

/// The lines of a comment that Markdown reads as such: those outside of its fences.
fn outside(markdown: &str) -> Vec<&str> {
    let mut fence: Option<&str> = None;
    let mut lines = Vec::new();
    for line in markdown.lines() {
        match fence {
            // CommonMark closes a fence at a line of at least as many backticks, with up to three spaces before.
            Some(open) if line.trim().len() >= open.len() && line.trim().bytes().all(|byte| byte == b'`') => fence = None,
            Some(_) => {}
            None => match line.strip_suffix("diff").filter(|start| start.starts_with("```")) {
                Some(start) => fence = Some(start),
                None => lines.push(line),
            },
        }
    }
    assert_eq!(fence, None, "a fence stays open:\n{markdown}");
    lines.retain(|line| !line.is_empty());
    lines
}

#[test]
fn nothing_that_files_say_becomes_markup() {
    let hostile = "```\n</details>\n# heading @team <img src=x> | `a` ``` [x](y) --> \n~~~\n    ````````\n";
    let quoted = serde_json::to_string(hostile).unwrap();
    let one_line = serde_json::to_string("``` </details> @team | --> \u{202e}x \u{1b}[2J").unwrap();
    let text = |value: &str| {
        format!(
            "name: a\ncommand: [x, {value}]\ndescription: {quoted}\nauthor: {one_line}\nannotations: {{a: {one_line}}}\nlabels: {{x: y}}\n"
        )
    };
    let path = "```@team </details>|`x`` $(reboot).yaml";
    let before = jobs(&[file(path, "name: a\ncommand: [x, y]\n"), file("`b`.yaml", "name: gone\ncommand: [x]\n")]);
    let after = jobs(&[file(path, &text(&one_line)), file("|@all```.yaml", "name: new\ncommand: [x]\n")]);
    let plan = planned(&after, &before, &prune()).unwrap();
    let options = RenderOptions {
        header: Some("prod/support: `a`` @team </details> → <b>x\u{1b}[2J\n# no heading".into()),
        notes: [(name("a"), Note { beside: Some("``` @team".into()), below: vec!["```\n</details>".into()] })].into(),
        ..RenderOptions::default()
    };
    let markdown = render_markdown(&plan, &options);
    assert_eq!(
        outside(&markdown),
        [
            "<!-- octavius:diff:support -->",
            "### Catalogue `support`",
            "**1 added, 1 changed, 1 removed, 0 unchanged**",
            "``` prod/support: `a`` @team </details> → <b>x\u{fffd}[2J\u{fffd}# no heading ```",
            "<details>",
            "<summary>1 added</summary>",
            "</details>",
            "<details>",
            "<summary>1 changed</summary>",
            "</details>",
            "<details>",
            "<summary>1 removed</summary>",
            "</details>",
        ],
        "{markdown}"
    );
    let text = render_text(&plan, &options);
    for rendering in [&markdown, &text] {
        assert!(!rendering.contains(['\x1b', '\u{202e}']), "{rendering}");
    }
    // Only the lines of jobs, the header and the counts start at the margin: no value can pose as one.
    let margin: Vec<_> = text.lines().filter(|line| !line.starts_with(' ')).map(|line| line.get(..3).unwrap()).collect();
    assert_eq!(margin, ["pro", "+ n", "~ a", "- g", "1 a"]);
}

#[test]
fn a_comment_stays_short_and_says_what_it_leaves_out() {
    let many = |range: std::ops::Range<u32>, text: &str| -> Vec<LoadedJob> {
        range.map(|number| job(&format!("name: job-{number:05}\ncommand: [x]\n{text}"))).collect()
    };
    let script = |word: &str| format!("description: |\n{}", format!("  {word} 😀😀 {}\n", "z".repeat(300)).repeat(100));
    let before = [many(0..150, &script("old")), many(4000..4003, "")].concat();
    let after = [many(0..150, &script("new")), many(5000..6500, "")].concat();
    let plan = planned(&after, &before, &prune()).unwrap();
    let markdown = render_markdown(&plan, &RenderOptions::default());
    assert_eq!(markdown, render_markdown(&plan, &RenderOptions::default()));
    let length = markdown.encode_utf16().count();
    assert!((50_000..60_000).contains(&length), "{length}");
    let lines = markdown.lines().zip(markdown.lines().skip(1));
    // Of a job with many lines the first are shown; it is one of those that are not shown in full.
    let whole = markdown.lines().filter(|line| line.starts_with(['+', '-'])).count();
    let started = lines.filter(|(line, next)| line.starts_with('!') && next.starts_with(' ')).count();
    assert!(markdown.contains("\n- job-04002"), "the removals are there, whatever else is cut");
    assert!(started > 0 && markdown.matches("    … ").count() >= started, "one job with many lines leaves room for others");
    let last = *outside(&markdown).last().unwrap();
    assert_eq!(last, format!("**{} jobs are not shown in full.** `octavius diff` shows all of them.", 1653 - whole));
    let whole = render_text(&plan, &RenderOptions::default());
    assert!(plan.changes.iter().all(|change| whole.contains(change.job.as_str())));
}

#[test]
fn a_job_whose_own_change_is_left_out_is_counted_though_a_shared_one_is_shown() {
    let with = |image: &str, word: &str| {
        let mut files: Vec<_> = (0..3000)
            .map(|number| {
                let own = if number < 500 { format!("author: {word} {}\n", "z".repeat(200)) } else { String::new() };
                file(&format!("job-{number:04}.yaml"), &format!("name: job-{number:04}\ncommand: [x]\n{own}"))
            })
            .collect();
        files.push(file("_defaults.yaml", &format!("image_name: {image}\n")));
        jobs(&files)
    };
    let plan = planned(&with("tools:2", "new"), &with("tools:1", "old"), &PlanOptions::default()).unwrap();
    let markdown = render_markdown(&plan, &RenderOptions::default());
    assert!(markdown.contains("! 3000 jobs: job-0000, "), "{markdown}");
    let shown = markdown.lines().filter(|line| line.starts_with("! job-")).count();
    assert!((1..500).contains(&shown), "{shown}");
    let last = *outside(&markdown).last().unwrap();
    assert_eq!(last, format!("**{} jobs are not shown in full.** `octavius diff` shows all of them.", 500 - shown));
}

#[test]
fn an_empty_plan_still_has_its_marker() {
    let plan = planned(&[job("name: a\ncommand: [x]\n")], &[job("name: a\ncommand: [x]\n")], &prune()).unwrap();
    assert_eq!(
        render_markdown(&plan, &RenderOptions::default()),
        "<!-- octavius:diff:support -->\n### Catalogue `support`\n\n**no changes, 1 unchanged**\n"
    );
}

#[test]
fn sensitive_values_are_in_no_rendering() {
    let with = |value: &str| {
        let argument = format!("{{name: pin, default: {value}, enum: [{value}], sensitive: true}}");
        [job(&format!("name: a\ncommand: [x]\nenv_vars: {{args: [{argument}]}}\n"))]
    };
    let added = planned(&with("hunter2"), &[], &prune()).unwrap();
    let changed = planned(&with("hunter2"), &with("swordfish"), &prune()).unwrap();
    assert_eq!((added.changes[0].action, changed.changes[0].action), (Action::Added, Action::Changed));
    for plan in [added, changed] {
        let options = RenderOptions::default();
        let text = format!("{}{}", render_text(&plan, &options), render_markdown(&plan, &options));
        assert!(!text.contains("hunter2") && !text.contains("swordfish"), "{text}");
    }
}
