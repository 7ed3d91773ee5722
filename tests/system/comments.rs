//! What stands for the comments of GitHub and of GitLab: a small HTTP server that keeps them, and takes no call that either would refuse.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// The token that may write comments.
pub(crate) const TOKEN: &str = "ghs_comments";

/// One comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comment {
    pub(crate) id: u64,
    pub(crate) author: String,
    pub(crate) body: String,
}

/// The server. It ends with the process of its test.
#[derive(Debug)]
pub(crate) struct Comments {
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    comments: Vec<Comment>,
    writes: Vec<String>,
    /// A file that is served to all, at `/download`.
    download: Vec<u8>,
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Who writes with [`TOKEN`], to GitHub and to GitLab.
const BOT: &str = "github-actions[bot]";

impl Comments {
    /// Begins with 120 comments of others, one of which bears `marker`.
    pub(crate) fn start(marker: &str) -> Result<Self> {
        let others = (1..=120).map(|id| {
            let body = if id == 3 { format!("{marker}\nnot yours") } else { format!("comment {id}") };
            Comment { id, author: "mallory".to_owned(), body }
        });
        let state = Arc::new(Mutex::new(State { comments: others.collect(), ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // a client that breaks off fails by itself
                let _ = serve(stream, &shared);
            }
        });
        Ok(Self { url, state })
    }

    /// What is served at `/download`.
    pub(crate) fn offer(&self, bytes: &[u8]) {
        self.state.lock().unwrap().download = bytes.to_vec();
    }

    /// The comments that were written with the token, after a check that nobody else's has changed.
    pub(crate) fn ours(&self) -> Vec<Comment> {
        let state = self.state.lock().unwrap();
        let (ours, others): (Vec<Comment>, Vec<Comment>) =
            state.comments.iter().cloned().partition(|comment| comment.author == BOT);
        assert!(others.len() == 120 && others[2].body.ends_with("not yours"));
        ours
    }

    /// The calls that wrote: method and path.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.state.lock().unwrap().writes.clone()
    }
}

fn read(stream: &TcpStream) -> Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next().context("no method")?.to_owned(), words.next().context("no path")?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(Ok(0), |(_, value)| value.parse())?;
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request { method, path, query, headers, body })
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> Result<()> {
    let request = read(&stream)?;
    let (status, body) = if request.path == "/download" {
        ("200 OK", state.lock().unwrap().download.clone())
    } else {
        match answer(&request, &mut state.lock().unwrap()) {
            Ok(value) => ("200 OK", value.to_string().into_bytes()),
            Err(error) => ("403 Forbidden", json!({ "message": format!("{error:#}") }).to_string().into_bytes()),
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    Ok(stream.write_all(&body)?)
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    fn number(&self, key: &str) -> Result<usize> {
        let value = self.query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        Ok(value.with_context(|| format!("no {key}"))?.parse()?)
    }

    fn text(&self) -> Result<String> {
        if self.header("content-type") != "application/json" {
            bail!("not JSON: {:?}", self.header("content-type"));
        }
        let value: Value = serde_json::from_slice(&self.body)?;
        Ok(value["body"].as_str().context("no body")?.to_owned())
    }
}

fn answer(request: &Request, state: &mut State) -> Result<Value> {
    let of_gitlab = request.path.starts_with("/api/v4/");
    let may = if of_gitlab {
        request.header("private-token") == TOKEN
    } else {
        request.header("authorization") == format!("Bearer {TOKEN}")
    };
    if !may {
        bail!("no token");
    }
    // people of GitLab are numbered
    let person = |author: &str| if author == BOT { 7 } else { 9 };
    let shown = |comment: &Comment| match of_gitlab {
        true => json!({"id": comment.id, "author": {"id": person(&comment.author)}, "body": comment.body}),
        false => json!({"id": comment.id, "user": {"login": comment.author}, "body": comment.body}),
    };
    let (all, one) = match of_gitlab {
        true => ("/api/v4/projects/5/merge_requests/7/notes", "/api/v4/projects/5/merge_requests/7/notes/"),
        false => ("/repos/team/jobs/issues/7/comments", "/repos/team/jobs/issues/comments/"),
    };
    if request.method != "GET" {
        state.writes.push(format!("{} {}", request.method, request.path));
    }
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/api/v4/user") => Ok(json!({"id": 7})),
        ("GET", path) if path == all => {
            let (page, size) = (request.number("page")?, request.number("per_page")?);
            Ok(state.comments.iter().skip((page - 1) * size).take(size).map(shown).collect())
        }
        ("POST", path) if path == all => {
            let id = state.comments.len() as u64 + 1;
            let comment = Comment { id, author: BOT.to_owned(), body: request.text()? };
            state.comments.push(comment.clone());
            Ok(shown(&comment))
        }
        ("PATCH" | "PUT", path) if (request.method == "PUT") == of_gitlab => {
            let id: u64 = path.strip_prefix(one).context("no such path")?.parse()?;
            let comment = state.comments.iter_mut().find(|comment| comment.id == id).context("no such comment")?;
            if comment.author != BOT {
                bail!("not yours");
            }
            comment.body = request.text()?;
            Ok(shown(comment))
        }
        (method, path) => bail!("no {method} {path}"),
    }
}
