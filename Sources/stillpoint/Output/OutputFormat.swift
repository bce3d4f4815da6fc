import API
import ArgumentParser
import Foundation

enum OutputFormat: String, CaseIterable, ExpressibleByArgument {
    case table
    case json
}

enum Output {
    /// The API's own JSON on standard output; programs may rely on every field of it.
    static func json(_ value: some Encodable) throws {
        var data = try APIJSON.encoder(pretty: true).encode(value)
        data.append(UInt8(ascii: "\n"))
        FileHandle.standardOutput.write(data)
    }

    /// A table on standard output, or on standard error the sentence for "there are none".
    static func table(_ table: Table, whenEmpty sentence: String) {
        if table.rows.isEmpty {
            Terminal.error(sentence)
        } else {
            print(table.rendered())
        }
    }
}
