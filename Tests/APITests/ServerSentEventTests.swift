import API
import Testing

@Suite("Server-sent events")
struct ServerSentEventTests {
    @Test("events are the same wherever the stream is cut", arguments: 1...7)
    func cuts(length: Int) {
        let text = "event: job\ndata: a\ndata: ä\n\n: comment\n\ndata:b\r\n\r\nid: 7\n\ndata\n\nevent: x\ndata: c\r\r"
        var parser = ServerSentEventParser()
        var events: [ServerSentEvent] = []
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            events += parser.consume(rest.prefix(length))
            rest = rest.dropFirst(length)
        }
        #expect(
            events == [
                ServerSentEvent(name: "job", data: "a\nä"), ServerSentEvent(name: "message", data: "b"),
                ServerSentEvent(name: "message", data: ""), ServerSentEvent(name: "x", data: "c"),
            ])
    }

    @Test("an event that has not ended is not handed out")
    func incomplete() {
        var parser = ServerSentEventParser()
        #expect(parser.consume("data: a\n".utf8).isEmpty)
        #expect(parser.consume("\n".utf8) == [ServerSentEvent(name: "message", data: "a")])
    }

    @Test("a line without end does not fill the memory")
    func endless() {
        var parser = ServerSentEventParser()
        let noise = [UInt8](repeating: UInt8(ascii: "x"), count: 1 << 20)
        for _ in 0..<10 { #expect(parser.consume(noise).isEmpty) }
        #expect(parser.consume("\n\ndata: a\n\n".utf8) == [ServerSentEvent(name: "message", data: "a")])
    }
}
