/// Rows for people: aligned columns, two blanks between them, numbers to the right.
struct Table {
    enum Alignment { case left, right }

    struct Column {
        var title: String
        var alignment: Alignment = .left

        static func left(_ title: String) -> Column { Column(title: title) }
        static func right(_ title: String) -> Column { Column(title: title, alignment: .right) }
    }

    var columns: [Column]
    var rows: [[String]]

    init(_ columns: [Column], rows: [[String]]) {
        self.columns = columns
        self.rows = rows
    }

    /// Without trailing blanks, without a line break at the end. A cell that is empty shows as `-`.
    func rendered(indent: Int = 0) -> String {
        let lines = [columns.map(\.title)] + rows.map { row in row.map { $0.isEmpty ? "-" : $0 } }
        let widths = columns.indices.map { column in
            lines.map { $0.indices.contains(column) ? $0[column].count : 0 }.max() ?? 0
        }
        let margin = String(repeating: " ", count: indent)
        return lines.map { line in
            var text = margin
            for (column, cell) in line.enumerated() where column < columns.count {
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                if column > 0 { text += "  " }
                text += columns[column].alignment == .right ? padding + cell : cell + padding
            }
            while text.hasSuffix(" ") { text.removeLast() }
            return text
        }.joined(separator: "\n")
    }
}

/// `name   value` lines about one thing.
struct Description {
    private var entries: [(name: String, value: String)] = []

    mutating func add(_ name: String, _ value: String?) {
        if let value { entries.append((name, value)) }
    }

    /// The first line beside the name, the others below it.
    mutating func add(_ name: String, lines: [String]) {
        guard !lines.isEmpty else { return }
        for (index, line) in lines.enumerated() { entries.append((index == 0 ? name : "", line)) }
    }

    func rendered(indent: Int = 0) -> String {
        let width = entries.map(\.name.count).max() ?? 0
        let margin = String(repeating: " ", count: indent)
        return entries.map { entry in
            margin + entry.name + String(repeating: " ", count: width - entry.name.count + 2) + entry.value
        }.joined(separator: "\n")
    }
}
