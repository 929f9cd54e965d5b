//! `kvdb export`
//!
//! A file comes into being whole: it is written under another name beside its own and renamed at
//! the end, so that an export that broke off is never taken for one that didn't.

use super::client;
use super::parts::Parts;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, is_watched, printable};
use crate::rows::{Content, Format, Kind, Row, RowError};
use indicatif::{ProgressBar, ProgressStyle};
use kvdb_client::{Client, Item, Scan, ScanOptions};
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Export all rows to a file, as `import` reads them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb export all.tsv
  kvdb export users.jsonl --prefix user:
  kvdb export - --format jsonl | gzip > all.jsonl.gz

TSV is `key TAB value` in exact bytes. It can't hold keys with a tab or a newline, values with a \
newline or with CR at their end, rows that expire, or hashes, lists and sets: these end the export with \
exit code 3. JSON lines hold everything; bytes that aren't UTF-8 go as key_b64 and value_b64. A large \
collection takes several lines. It is read in parts, so not as of one moment.")]
pub(crate) struct Args {
    /// File, or `-` for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Format [default: by the file's name, else TSV]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Export only keys that begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// Leave out keys that hold another type than a string, and say how many
    #[arg(long)]
    strings_only: bool,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let format = command.format.or_else(|| Format::of_name(&command.file)).unwrap_or(Format::Tsv);
    let prefix = command.prefix.unwrap_or_default().into_vec().into();
    let client = client(args)?;
    let scan = client.scan(ScanOptions { prefix, ..ScanOptions::default() });
    let kept = Kept { client, format, strings_only: command.strings_only };
    if command.file.as_os_str() == "-" {
        let mut out = BufWriter::new(io::stdout());
        let copied = copy(scan, &kept, &mut out, "standard output").await?;
        if copied.left_out > 0 {
            eprintln!("kvdb: left out, of other types: {}", copied.left_out);
        }
        return Ok(());
    }
    let place = command.file.display().to_string();
    let Copied { rows, left_out } = to_file(scan, &kept, &command.file, &place).await?;
    let mut output = Output::new();
    match args.json {
        true => {
            output
                .json(&serde_json::json!({ "file": place, "rows": rows, "left_out": left_out }))?;
        }
        false => {
            output.line(format!("exported {rows} rows to {place}"))?;
            if left_out > 0 {
                output.line(format!("left out, of other types: {left_out}"))?;
            }
        }
    }
    output.finish()
}

/// What is written of a row, and of which rows.
struct Kept {
    /// Who is asked for elements.
    client: Client,
    format: Format,
    strings_only: bool,
}

/// How many keys were written, and how many weren't.
struct Copied {
    rows: u64,
    left_out: u64,
}

async fn to_file(scan: Scan, kept: &Kept, path: &Path, place: &str) -> Result<Copied, Failure> {
    let failed = |error: &io::Error| Failure::writing(place, error);
    // A pipe or a device is written as it is; only files are replaced.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let file = File::options().write(true).open(path).map_err(|error| failed(&error))?;
        return copy(scan, kept, &mut BufWriter::new(file), place).await;
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".kvdb-export-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|error| failed(&error))?;
    let copied = copy(scan, kept, &mut BufWriter::new(file.as_file_mut()), place).await?;
    file.as_file().sync_all().map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error.error))?;
    Ok(copied)
}

async fn copy(
    mut scan: Scan,
    kept: &Kept,
    out: &mut impl Write,
    place: &str,
) -> Result<Copied, Failure> {
    let failed = |error: io::Error| Failure::writing(place, &error);
    let progress = progress();
    let mut buffer = Vec::new();
    let mut left_out = 0;
    while let Some(items) = scan.next_chunk().await? {
        for item in &items {
            if let Some(kind) = &item.kind {
                if kept.strings_only {
                    left_out += 1;
                    continue;
                }
                let kind = collection(item, kind, kept.format)?;
                let mut parts = Parts::new(&kept.client, item.key.clone(), kind);
                while let Some(part) = parts.next().await? {
                    let row = row_of(item, Content::Part(part), SystemTime::now());
                    kept.format.write(&row, &mut buffer).map_err(|error| held(&row, &error))?;
                    out.write_all(&buffer).map_err(failed)?;
                    buffer.clear();
                }
                continue;
            }
            let row = row_of(item, Content::Value(item.value.clone()), SystemTime::now());
            kept.format.write(&row, &mut buffer).map_err(|error| held(&row, &error))?;
        }
        out.write_all(&buffer).map_err(failed)?;
        buffer.clear();
        progress.inc(items.len() as u64);
    }
    out.flush().map_err(failed)?;
    progress.finish_and_clear();
    Ok(Copied { rows: progress.position() - left_out, left_out })
}

fn held(row: &Row, error: &RowError) -> Failure {
    let key = printable(&row.key);
    Failure::Refused(format!("key {key}: {error}; --format jsonl can hold it"))
}

/// The type of a collection that can be exported.
fn collection(item: &Item, name: &str, format: Format) -> Result<Kind, Failure> {
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    match known {
        Some(kind) if format == Format::Jsonl => Ok(kind),
        known => {
            let (key, way) =
                (printable(&item.key), known.map_or("", |_| "--format jsonl can hold it, "));
            Err(Failure::Refused(format!(
                "key {key} holds a {name}: {way}--strings-only leaves such keys out"
            )))
        }
    }
}

/// What is left of a row's life is what an import gives it again.
fn row_of(item: &Item, content: Content, now: SystemTime) -> Row {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = |expires_at_ms| {
        let left = Duration::from_millis(expires_at_ms).saturating_sub(now);
        (left.as_millis() as u64).max(1)
    };
    Row { key: item.key.clone(), content, ttl_ms: item.expires_at_ms.map(left) }
}

fn progress() -> ProgressBar {
    if !is_watched() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} rows, {per_sec}")
        .expect("the template is well formed");
    ProgressBar::new_spinner().with_style(style)
}
