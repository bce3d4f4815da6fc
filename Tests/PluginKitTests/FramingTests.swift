import Testing

@testable import PluginKit

@Suite("Framing")
struct FramingTests {
    @Test("a line is whole however the bytes arrive")
    func pieces() {
        var splitter = LineSplitter(maximumBytes: 10)
        var pieces: [LineSplitter.Piece] = []
        for byte in Array("one\ntwo\n\nthr".utf8) { pieces += splitter.feed([byte]) }
        #expect(pieces == [.line(Array("one".utf8)), .line(Array("two".utf8))])
        #expect(splitter.feed(Array("ee\n".utf8)) == [.line(Array("three".utf8))])
    }

    @Test("a line beyond the limit is reported once, dropped, and the next one is read")
    func tooLong() {
        var splitter = LineSplitter(maximumBytes: 4)
        let bytes = Array("abcd\nabcdefghijkl\nok\n".utf8)
        #expect(splitter.feed(bytes) == [.line(Array("abcd".utf8)), .tooLong, .line(Array("ok".utf8))])
    }

    @Test("JSON of any shape comes back as it was, whole numbers as whole numbers")
    func jsonValue() throws {
        let text = #"{"a":[1,2.5,true,null,"x"],"b":{"c":{}}}"#
        let value = try PluginJSON.decode(JSONValue.self, from: Array(text.utf8))
        #expect(try PluginJSON.encode(value) == Array((text + "\n").utf8))
        #expect(value["a"] == .array([.number(1), .number(2.5), .bool(true), .null, .string("x")]))
    }

    @Test("what is missing in a message is named")
    func explained() {
        let line = Array(#"{"id":1,"method":"renew","params":{"holdID":"h"}}"#.utf8)
        #expect(throws: PluginFailure(.badRequest, "`params.leaseSeconds` is missing")) {
            try PluginJSON.decode(IncomingRequest<RenewParameters>.self, from: line)
        }
    }
}
