import Foundation

/// A JSON value that keeps the order of its members, for the OpenAPI document.
indirect enum JSONText: Sendable, Equatable {
    case object([Member])
    case array([JSONText])
    case string(String)
    case integer(Int)
    case boolean(Bool)

    struct Member: Sendable, Equatable {
        var name: String
        var value: JSONText
    }

    static func members(_ pairs: KeyValuePairs<String, JSONText>) -> JSONText {
        .object(pairs.map { Member(name: $0.key, value: $0.value) })
    }

    /// Two spaces of indentation, `\n` at line ends.
    func rendered(indent: Int = 0) -> String {
        let inner = String(repeating: "  ", count: indent + 1)
        let outer = String(repeating: "  ", count: indent)
        switch self {
        case .object(let members):
            if members.isEmpty { return "{}" }
            let lines = members.map { "\(inner)\(Self.quoted($0.name)): \($0.value.rendered(indent: indent + 1))" }
            return "{\n" + lines.joined(separator: ",\n") + "\n\(outer)}"
        case .array(let values):
            if values.isEmpty { return "[]" }
            return "[" + values.map { $0.rendered(indent: indent) }.joined(separator: ", ") + "]"
        case .string(let text): return Self.quoted(text)
        case .integer(let number): return String(number)
        case .boolean(let flag): return flag ? "true" : "false"
        }
    }

    private static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case _ where scalar.value < 0x20: result += String(format: "\\u%04x", scalar.value)
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}

/// What a JSON value may be (JSON Schema 2020-12, the part that OpenAPI 3.1 documents of ours need).
indirect enum Schema: Sendable {
    case string
    case choice([String])
    /// RFC 3339, UTC, milliseconds.
    case date
    case integer(ClosedRange<Int>?)
    case number
    case boolean
    case array(Schema)
    /// An object with any names and values of one schema.
    case map(Schema)
    /// One of the named schemas.
    case named(String)

    static let bytes = Schema.integer(0...Int.max)
    static let seconds = Schema.number

    var json: JSONText {
        switch self {
        case .string: .members(["type": .string("string")])
        case .choice(let words): .members(["type": .string("string"), "enum": .array(words.map(JSONText.string))])
        case .date: .members(["type": .string("string"), "format": .string("date-time")])
        case .integer(let range): Self.bounded(range)
        case .number: .members(["type": .string("number")])
        case .boolean: .members(["type": .string("boolean")])
        case .array(let element): .members(["type": .string("array"), "items": element.json])
        case .map(let element): .members(["type": .string("object"), "additionalProperties": element.json])
        case .named(let name): .members(["$ref": .string("#/components/schemas/\(name)")])
        }
    }

    private static func bounded(_ range: ClosedRange<Int>?) -> JSONText {
        var members: [JSONText.Member] = [.init(name: "type", value: .string("integer"))]
        if let range {
            members.append(.init(name: "minimum", value: .integer(range.lowerBound)))
            if range.upperBound != .max { members.append(.init(name: "maximum", value: .integer(range.upperBound))) }
        }
        return .object(members)
    }
}

/// An object with known fields.
struct ObjectSchema: Sendable {
    struct Field: Sendable {
        var name: String
        var schema: Schema
        var isRequired: Bool
        var summary: String
    }

    var name: String
    var summary: String
    var fields: [Field]

    init(_ name: String, _ summary: String, _ fields: [Field]) {
        self.name = name
        self.summary = summary
        self.fields = fields
    }

    var json: JSONText {
        var members: [JSONText.Member] = [
            .init(name: "type", value: .string("object")), .init(name: "description", value: .string(summary)),
        ]
        let required = fields.filter(\.isRequired).map { JSONText.string($0.name) }
        if !required.isEmpty { members.append(.init(name: "required", value: .array(required))) }
        members.append(.init(name: "properties", value: .object(fields.map(Self.property))))
        return .object(members)
    }

    private static func property(_ field: Field) -> JSONText.Member {
        guard !field.summary.isEmpty, case .object(var members) = field.schema.json else {
            return .init(name: field.name, value: field.schema.json)
        }
        members.append(.init(name: "description", value: .string(field.summary)))
        return .init(name: field.name, value: .object(members))
    }
}

func required(_ name: String, _ schema: Schema, _ summary: String = "") -> ObjectSchema.Field {
    ObjectSchema.Field(name: name, schema: schema, isRequired: true, summary: summary)
}

func optional(_ name: String, _ schema: Schema, _ summary: String = "") -> ObjectSchema.Field {
    ObjectSchema.Field(name: name, schema: schema, isRequired: false, summary: summary)
}
