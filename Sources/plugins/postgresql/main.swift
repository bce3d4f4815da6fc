import PluginKit

PluginMain.run(PostgreSQLPlugin())
