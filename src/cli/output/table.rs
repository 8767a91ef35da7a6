//! Columns: four spaces between them, padded to their widest cell, the last one not.

use serde_json::{Map, Value};

use super::value::{go, looks_like_duration, short_duration};

const GAP: &str = "    ";
const NARROW_GAP: &str = "  ";

/// Rows under a header and a line of dashes. Empty cells print as `n/a`.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    columns(&under_header(header, rows), GAP)
}

/// The same with two spaces between the columns, as the few tables have that Vault makes in its own way.
pub fn narrow_table(header: &[&str], rows: &[Vec<String>]) -> String {
    columns(&under_header(header, rows), NARROW_GAP)
}

fn under_header(header: &[&str], rows: &[Vec<String>]) -> Vec<Vec<String>> {
    let dashes = header.iter().map(|name| "-".repeat(name.len())).collect();
    let mut lines = vec![header.iter().map(|name| (*name).to_owned()).collect(), dashes];
    lines.extend_from_slice(rows);
    lines
}

/// Rows of name and value without a header.
pub fn key_value_rows<N: Into<String>, V: Into<String>>(rows: impl IntoIterator<Item = (N, V)>) -> String {
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.into(), value.into()]).collect();
    columns(&rows, GAP)
}

/// The fields of an object under `Key` and `Value`, sorted; nothing for an empty one.
pub fn map_table(fields: &Map<String, Value>) -> String {
    if fields.is_empty() {
        return String::new();
    }
    let row = |(name, value): (&String, &Value)| {
        let shown = if looks_like_duration(name) { short_duration(value) } else { go(value) };
        vec![name.clone(), shown]
    };
    table(&["Key", "Value"], &fields.iter().map(row).collect::<Vec<_>>())
}

/// Any value as a table: an object by its fields, a list under `Keys`, a scalar as it is.
pub fn of_value(value: &Value) -> String {
    match value {
        Value::Object(fields) => map_table(fields),
        Value::Array(items) => table(&["Keys"], &items.iter().map(|item| vec![go(item)]).collect::<Vec<_>>()),
        scalar => go(scalar),
    }
}

/// The title line of a section of `kv get`, as wide as the table under it: `======= Metadata =======`.
pub fn section(name: &str, fields: &Map<String, Value>) -> String {
    // Four spaces between the columns and the length of "Value".
    let longest = fields.keys().map(String::len).max().unwrap_or(0);
    title(name, longest + 9)
}

/// A title between equals signs for something of that width.
pub fn title(name: &str, width: usize) -> String {
    let signs = match width.saturating_sub(name.len() + 2) {
        0 => 4,
        signs => signs.next_multiple_of(2),
    };
    let side = "=".repeat(signs / 2);
    format!("{side} {name} {side}")
}

fn columns(lines: &[Vec<String>], gap: &str) -> String {
    let cell = |text: &String| if text.is_empty() { "n/a".to_owned() } else { text.clone() };
    let lines: Vec<Vec<String>> = lines.iter().map(|line| line.iter().map(cell).collect()).collect();
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width_of = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width_of).collect();
    let line = |cells: &Vec<String>| {
        let last = cells.len().saturating_sub(1);
        let padded = cells.iter().enumerate().map(|(column, cell)| match column == last {
            true => cell.clone(),
            false => format!("{cell:<width$}", width = widths[column]),
        });
        padded.collect::<Vec<_>>().join(gap)
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_map_is_a_table_of_sorted_keys() {
        let text = map_table(&fields(json!({
            "version": 1, "custom_metadata": null, "deletion_time": "", "destroyed": false, "ttl": 3600,
        })));
        let expected = "\
Key                Value
---                -----
custom_metadata    <nil>
deletion_time      n/a
destroyed          false
ttl                1h
version            1";
        assert_eq!(text, expected);
        assert_eq!(map_table(&Map::new()), "");
    }

    #[test]
    fn the_last_column_is_not_padded() {
        let text = table(
            &["Node", "State"],
            &[vec!["n1".into(), "leader".into()], vec!["longer".into(), "x".into()]],
        );
        assert_eq!(text, "Node      State\n----      -----\nn1        leader\nlonger    x");
    }

    #[test]
    fn section_titles_are_as_wide_as_their_tables() {
        let metadata = fields(json!({"created_time": 0, "custom_metadata": 0}));
        assert_eq!(section("Metadata", &metadata), "======= Metadata =======");
        assert_eq!(section("Data", &fields(json!({"password": 0}))), "====== Data ======");
        assert_eq!(section("Data", &fields(json!({"a": 0}))), "== Data ==");
        assert_eq!(title("Secret Path", "secret/data/a".len()), "== Secret Path ==");
        assert_eq!(title("Secret Path", "secret/data/app/db".len()), "=== Secret Path ===");
    }
}
