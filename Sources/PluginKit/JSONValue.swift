/// Any JSON, for a plug-in's section of the configuration, whose shape only the plug-in knows.
public enum JSONValue: Codable, Sendable, Hashable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([String: JSONValue])

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([JSONValue].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: JSONValue].self))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .null: try container.encodeNil()
        case .bool(let value): try container.encode(value)
        case .number(let value):
            // Whole numbers stay whole on the wire: 5, not 5.0.
            if let whole = Int64(exactly: value) { try container.encode(whole) } else { try container.encode(value) }
        case .string(let value): try container.encode(value)
        case .array(let value): try container.encode(value)
        case .object(let value): try container.encode(value)
        }
    }

    /// The member of an object; nil for anything else.
    public subscript(key: String) -> JSONValue? {
        if case .object(let members) = self { members[key] } else { nil }
    }

    public var stringValue: String? {
        if case .string(let value) = self { value } else { nil }
    }
}

extension JSONValue {
    /// - Throws: `badRequest`, naming what is wrong.
    public func decoded<Value: Decodable>(as type: Value.Type) throws(PluginFailure) -> Value {
        do throws(PluginFailure) {
            return try PluginJSON.decode(type, from: try PluginJSON.encode(self))
        } catch {
            throw PluginFailure(.badRequest, "The request is wrong: \(error.message)")
        }
    }

    /// - Throws: where it cannot be JSON.
    public init(encoding value: some Encodable) throws(PluginFailure) {
        self = try PluginJSON.decode(JSONValue.self, from: try PluginJSON.encode(value))
    }

    /// A plug-in's configuration in the plug-in's own type.
    ///
    /// - Throws: `badConfiguration`, naming what is wrong.
    public static func configuration<Value: Decodable>(
        _ value: JSONValue?, as type: Value.Type
    ) throws(PluginFailure) -> Value {
        do throws(PluginFailure) {
            return try PluginJSON.decode(type, from: try PluginJSON.encode(value ?? .object([:])))
        } catch {
            throw PluginFailure(
                .badConfiguration, "The plug-in's configuration is wrong: \(error.message)",
                hint: "Its section of the agent's configuration file is described in the plug-in's documentation")
        }
    }
}
