import Foundation
import PluginKit
import Testing

@testable import stillpoint_agent

@Suite("Configuration")
struct ConfigurationTests {
    @Test("file, then environment")
    func order() throws {
        let directory = try TemporaryDirectory()
        try directory.write(
            """
            listen: 0.0.0.0:11169
            run: /run/other
            plugins:
              - /opt/plugins
            pluginConfiguration:
              postgresql:
                port: 5433
                socket: "/run/pg"
                clusters: [{name: main, fast: yes}]
            """, to: "agent.yaml")
        let configuration = try AgentConfiguration.load(
            path: directory.path + "/agent.yaml", environment: ["STILLPOINT_AGENT_LISTEN": "127.0.0.1:1"])
        #expect(configuration.listen == "127.0.0.1:1")
        #expect(configuration.run == "/run/other")
        #expect(configuration.plugins == ["/opt/plugins"])
        #expect(configuration.pluginConfiguration["postgresql"]?["port"] == .number(5433))
        #expect(configuration.pluginConfiguration["postgresql"]?["socket"] == .string("/run/pg"))
    }

    @Test("without a file everything is closed: loopback only")
    func defaults() throws {
        let configuration = try AgentConfiguration.load(path: nil, environment: ["STILLPOINT_AGENT_LOG_LEVEL": "debug"])
        #expect(configuration.listen == "127.0.0.1:11169")
        #expect(configuration.run == "/run/stillpoint-agent")
    }

    @Test(
        "a wrong setting is named",
        arguments: [
            ("lisen: 127.0.0.1:1", "lisen"), ("listen: nowhere", "listen"), ("listen: 127.0.0.1:99999", "listen"),
            ("run: relative", "run"), ("state: [1]", "state"), ("plugins: here", "plugins"), ("- a", "mapping"),
            ("listen: [", "YAML"), ("logLevel: loud", "logLevel"), ("allowRunOnDisk: 3", "allowRunOnDisk"),
            ("run: /\(String(repeating: "x", count: 120))", "run"), ("pluginConfiguration: 4", "pluginConfiguration"),
        ])
    func wrong(text: String, word: String) throws {
        let directory = try TemporaryDirectory()
        try directory.write(text, to: "agent.yaml")
        let error = #expect(throws: ConfigurationError.self) {
            try AgentConfiguration.load(path: directory.path + "/agent.yaml", environment: [:])
        }
        #expect(error?.description.contains(word) == true, "\(String(describing: error))")
    }

    @Test("a file that was asked for and is not there is an error")
    func missing() {
        #expect(throws: ConfigurationError.self) {
            try AgentConfiguration.load(path: "/nonexistent/agent.yaml", environment: [:])
        }
    }
}
