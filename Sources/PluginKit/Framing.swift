import FoundationEssentials

struct PluginRequest<Parameters: Encodable>: Encodable {
    var id: Int
    var method: String
    var params: Parameters
}

struct IncomingHeader: Decodable {
    var id: Int
    var method: String
}

struct IncomingRequest<Parameters: Decodable>: Decodable {
    var params: Parameters
}

struct PluginAnswer<Answer: Decodable>: Decodable {
    var result: Answer?
    var error: PluginFailure?
}

struct OutgoingResult<Answer: Encodable>: Encodable {
    var id: Int
    var result: Answer
}

/// `id` is null where the request could not be read that far.
struct OutgoingError: Encodable {
    var id: Int?
    var error: PluginFailure

    private enum CodingKeys: String, CodingKey { case id, error }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(id, forKey: .id)
        try container.encode(error, forKey: .error)
    }
}

/// What a line from a plug-in is, before its result is looked at.
struct LineHeader: Decodable {
    var id: Int?
    var event: String?
}

enum PluginJSON {
    /// One line, with its newline.
    static func encode(_ value: some Encodable) throws(PluginFailure) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        do {
            var line = [UInt8](try encoder.encode(value))
            line.append(0x0A)
            return line
        } catch {
            throw PluginFailure(.badState, "A message cannot be written as JSON: \(error)")
        }
    }

    static func decode<Value: Decodable>(_ type: Value.Type, from line: [UInt8]) throws(PluginFailure) -> Value {
        do {
            return try JSONDecoder().decode(type, from: Data(line))
        } catch let error as DecodingError {
            throw PluginFailure(.badRequest, explain(error))
        } catch {
            throw PluginFailure(.badRequest, "The line is not JSON: \(error)")
        }
    }

    private static func explain(_ error: DecodingError) -> String {
        func place(_ context: DecodingError.Context, _ last: (any CodingKey)? = nil) -> String {
            let path = (context.codingPath + (last.map { [$0] } ?? [])).reduce("") { path, key in
                if let index = key.intValue { return "\(path)[\(index)]" }
                return path.isEmpty ? key.stringValue : "\(path).\(key.stringValue)"
            }
            return path.isEmpty ? "the line" : "`\(path)`"
        }
        return switch error {
        case .keyNotFound(let key, let context): "\(place(context, key)) is missing"
        case .valueNotFound(_, let context): "\(place(context)) is null or missing"
        case .typeMismatch(let type, let context): "\(place(context)) is not of type \(type)"
        case .dataCorrupted(let context): "\(place(context)) is not valid: \(context.debugDescription)"
        @unknown default: "The line is not understood: \(error)"
        }
    }
}

/// Cuts a byte stream into lines and never keeps more than one line's limit.
struct LineSplitter {
    enum Piece: Equatable {
        case line([UInt8])
        /// A line beyond the limit began; it is dropped up to its newline.
        case tooLong
    }

    let maximumBytes: Int
    private var pending: [UInt8] = []
    private var isSkipping = false

    init(maximumBytes: Int) { self.maximumBytes = maximumBytes }

    mutating func feed(_ bytes: some Sequence<UInt8>) -> [Piece] {
        var pieces: [Piece] = []
        for byte in bytes {
            if byte == 0x0A {
                if isSkipping {
                    isSkipping = false
                } else if !pending.isEmpty {
                    pieces.append(.line(pending))
                }
                pending.removeAll(keepingCapacity: true)
            } else if !isSkipping {
                if pending.count == maximumBytes {
                    pieces.append(.tooLong)
                    pending = []
                    isSkipping = true
                } else {
                    pending.append(byte)
                }
            }
        }
        return pieces
    }
}
